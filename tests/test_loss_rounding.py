"""A loss that is logged in fewer bits than the model computes in."""

import dataclasses

import numpy as np
import pytest

from tfaccel.autotune.comparison.faithfulness import Yardsticks, violation
from tfaccel.measure.numerics import TOLERANCES, Observation, compare, loss_error

ONE = np.float32(1.25)
NEXT = np.nextafter(ONE, np.float32(2))


def observed(loss):
    gradient = {"dense/kernel": np.ones((2, 2))}
    return Observation({"loss": np.asarray(loss)}, gradient, {}, {}, {}, {}, {})


def test_one_rounding_of_the_log_is_no_error_of_a_float64_plan():
    assert NEXT != ONE
    reference, candidate = observed(ONE), observed(NEXT)
    drift, tolerance = compare(reference, candidate), TOLERANCES["float64"]
    assert drift.loss == 0.0 and drift.violation(tolerance) is None
    assert violation(reference, candidate, tolerance, Yardsticks("float64")) is None


@pytest.mark.parametrize("wrong", [np.float32(1.2501), np.float32(np.nan), np.float32(np.inf)])
def test_what_is_more_than_rounding_still_is(wrong):
    tolerance = TOLERANCES["float64"]
    assert loss_error(ONE, wrong) > tolerance.loss
    found = violation(observed(ONE), observed(wrong), tolerance, Yardsticks("float64"))
    assert found.kind in ("loss", "finite")


def test_a_loss_in_float64_is_held_to_float64():
    assert loss_error(np.float64(1.25), np.float64(NEXT)) > TOLERANCES["float64"].loss


def test_a_plan_in_float32_is_held_to_what_it_was():
    tolerance = dataclasses.replace(TOLERANCES["float32"], loss=1e-5)
    assert compare(observed(ONE), observed(np.float32(1.2502))).violation(tolerance)
