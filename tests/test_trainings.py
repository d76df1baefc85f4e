"""Small programs train as without tfaccel: by numbers, callbacks, marks, files and warnings.

Each in four ways: stock, with a search that is opened wide, with candidates that are raced on the
training's own steps, and with a plan of many passes forced upon every fit. Callbacks are added as
`tfaccel run` adds them: no program knows of tfaccel.
"""

import functools

import numpy as np
import pytest
from trainings import TRAININGS
from trainings.seen import Batches, Epochs, see

import tfaccel
from tfaccel.autotune.expected.expectation import Expectation

FORCED = (
    "fused_norm",
    "fused_attention",
    "fused_activation",
    "fused_optimizer",
    "fused_rnn",
    "step_batching",
)
# Which plan wins is no matter here, so few seconds are enough.
SECONDS = 6.0
# bfloat16 has eight bits: 0.4 % in each number, which a few dozen steps make more of.
SIXTEEN_BITS = 0.1


def searching(item):
    """Every plan is worth a trial, on kept batches from a state that is put back."""
    return tfaccel.AccelCallback(
        excludes=["xla"] if item.draws else [],
        tuning_share=None,
        max_tuning_seconds=SECONDS,
        cache_dir=False,
        verbose=0,
    )


def racing():
    """Candidates take turns with the user's step, of passes that compute what it does."""
    return tfaccel.AccelCallback(
        includes=[*FORCED, "kernels"], tuning_share=1.0, cache_dir=False, verbose=0
    )


@pytest.fixture
def hopeful(monkeypatch):
    """Whatever is tried is expected to win much and to cost nothing, in trainings of a second."""
    monkeypatch.setattr(Expectation, "gain", lambda self, plan: 1.5 ** len(plan.names))
    monkeypatch.setattr(Expectation, "cost_seconds", lambda self, plan: 0.0)


def forced():
    return tfaccel.AccelCallback(FORCED, cache_dir=False, verbose=0)


def rows(quick=True):
    """All programs, of which those that are not quick are slow; all are where `quick` is false."""
    return [
        pytest.param(item, id=item.name, marks=() if item.quick and quick else pytest.mark.slow)
        for item in TRAININGS
    ]


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """What a training does without tfaccel: made once for both ways with it."""

    @functools.cache
    def seen(item):
        return see(item, tmp_path_factory.mktemp(item.name) / "work")

    return seen


def without_batches(events):
    return [[e for e in of_fit if not e[0].startswith("batch")] for of_fit in events]


def assert_alike(found, expected, rtol):
    """Numbers are equal where `rtol` is 0, and else as far as rounding lets them be."""
    assert [sorted(one) for one in found.numbers] == [sorted(one) for one in expected.numbers]
    for one, other in zip(found.numbers, expected.numbers, strict=True):
        for name in one:
            np.testing.assert_allclose(one[name], other[name], rtol, rtol / 10, err_msg=name)
    assert len(found.weights) == len(expected.weights)
    for one, other in zip(found.weights, expected.weights, strict=True):
        if one.dtype.kind != "f":
            np.testing.assert_array_equal(one, other)
            continue
        scale = rtol * (np.abs(other).max(initial=0) + 1e-3)
        np.testing.assert_allclose(one, other, rtol=0, atol=scale)


def assert_same_conduct(found, expected, allowed=()):
    assert len(found.marks) == len(expected.marks)
    for one, other in zip(found.marks, expected.marks, strict=True):
        assert one == other
    assert found.files == expected.files
    assert found.warnings <= expected.warnings
    told = [said for said in found.own_warnings if not said.startswith(tuple(allowed))]
    assert told == []


def bound(item, found):
    """What numbers may be off by: by nothing where the plan is the baseline."""
    names = {name for plan in found.plans for name in plan}
    if not names:
        return 0
    return SIXTEEN_BITS if "mixed_precision" in names else item.rtol


@pytest.mark.parametrize("item", rows(quick=False))
def test_a_search_opened_wide(item, stock, tmp_path):
    expected = stock(item)
    assert all(np.isfinite(values).all() for one in expected.numbers for values in one.values())
    found = see(item, tmp_path / "work", lambda: searching(item), Batches)
    print(found.plans, found.notes, dict(found.trials), found.failed)
    assert found.events == expected.events
    assert_same_conduct(found, expected)
    assert_alike(found, expected, bound(item, found))


@pytest.mark.parametrize("item", rows(quick=False))
def test_races_on_its_own_steps(item, stock, tmp_path, hopeful):
    expected = stock(item)
    found = see(item, tmp_path / "work", racing, Epochs)
    print(found.plans, found.notes, dict(found.trials), found.failed)
    assert found.events == without_batches(expected.events)
    assert_same_conduct(found, expected)
    assert_alike(found, expected, item.rtol)


@pytest.mark.parametrize("item", rows())
def test_a_plan_of_many_passes(item, stock, tmp_path):
    expected = stock(item)
    found = see(item, tmp_path / "work", forced, Epochs)
    print(found.plans, found.notes, found.own_warnings)
    assert found.events == without_batches(expected.events)
    assert_same_conduct(found, expected, allowed=["tfaccel leaves out "])
    assert_alike(found, expected, item.rtol)
