"""How far arrays are apart, by sums that never copy a whole array, beside NumPy on whole ones."""

import math

import numpy as np
import pytest

from tfaccel.measure.apart import Apart, norm, overall, relative_error, update_error

# More than is gone through at a time, and no multiple of it.
SHAPE = (3, 7001)


def pair(rng, dtype):
    first = rng.standard_normal(SHAPE).astype(dtype)
    return first, (first + 0.1 * rng.standard_normal(SHAPE)).astype(dtype)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_sums_are_those_of_whole_arrays(rng, dtype):
    first, second = pair(rng, dtype)
    a, b = first.astype("float64"), second.astype("float64")
    found = Apart.of(first, second)
    assert found.count == a.size
    assert found.norm == pytest.approx(np.linalg.norm(a)) == norm(first)
    assert found.other == pytest.approx(np.linalg.norm(b) ** 2)
    assert found.error == pytest.approx(np.linalg.norm(b - a))
    assert found.along == pytest.approx(np.vdot(a, b - a))
    assert found.cosine == pytest.approx(np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b))
    assert relative_error(first, second) == pytest.approx(found.error / found.norm)
    assert relative_error(first, second, 1e9) == pytest.approx(found.error / 1e9)


def test_an_array_is_not_apart_from_itself_nor_zero_from_zero(rng):
    first, _ = pair(rng, "float32")
    for array in (first, np.zeros(SHAPE), np.zeros(0), np.float32(2.0)):
        found = Apart.of(array, array)
        assert (found.error, found.relative(), found.cosine) == (0.0, 0.0, 1.0)
    assert relative_error(np.zeros(3), np.ones(3)) == math.inf


def test_what_is_finite_in_one_alone_is_infinitely_far(rng):
    first, second = pair(rng, "float32")
    first[0, 5] = np.nan
    assert Apart.of(first, second).relative() == Apart.of(second, first).relative() == math.inf


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_what_is_finite_in_neither_does_not_count(rng, number):
    first, second = pair(rng, "float32")
    first[1, 3] = second[1, 3] = 0.0
    finite = Apart.of(first, second)
    first[1, 3] = second[1, 3] = number
    found = Apart.of(first, second)
    assert found.relative() == pytest.approx(finite.relative())
    assert found.along == pytest.approx(finite.along)
    assert found.other == pytest.approx(finite.other)
    assert Apart.of(first, first).relative() == 0.0


def test_several_arrays_together(rng):
    pairs = [pair(rng, "float32") for _ in range(3)]
    whole = [np.concatenate(side, dtype="float64") for side in zip(*pairs, strict=True)]
    assert overall(Apart.of(*one) for one in pairs) == pytest.approx(relative_error(*whole))
    assert overall([]) == 0.0


def test_an_update_is_compared_relative_to_the_value_or_to_its_change(rng):
    before, value = pair(rng, "float64")
    other = value + 1e-3 * (value - before)
    change = np.linalg.norm(value - before)
    large = update_error(value, before, other, before)
    assert large == pytest.approx(1e-3 * change / np.linalg.norm(value))
    apart = update_error(value - before, -before, other - before, -before)
    assert apart == pytest.approx(1e-3 * change / np.linalg.norm(value))
    small = update_error(np.zeros(4), np.ones(4), np.zeros(4), np.ones(4) + 1e-3)
    assert small == pytest.approx(1e-3)
    assert update_error(value, before, value, before) == 0.0
    assert update_error(np.zeros(2), np.zeros(2), np.ones(2), np.zeros(2)) == math.inf
    assert update_error(value, before, np.full(SHAPE, np.nan), before) == math.inf
