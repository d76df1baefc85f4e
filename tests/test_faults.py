"""A fault at every point at which tfaccel runs inside a fit: the training is Keras's own."""

import dataclasses
import inspect

import fault_trainings
import numpy as np
import pytest
from crossed import crossed
from fault_grid import FAULTS, rotation, survey
from fault_points import PACKAGE
from fault_trainings import TRAININGS, Same, problems_with, recorded

from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.core import workload
from tfaccel.core.plan import Pass
from tfaccel.measure import timing
from tfaccel.steps.snapshot import Snapshot
from tfaccel.steps.taken_batches import TakenBatches
from tfaccel.system import json_files
from tfaccel.training.nan_guard import NaNGuard
from tfaccel.training.observed import Observed
from tfaccel.training.phases import Phase, Phases
from tfaccel.training.run import PlanRun
from tfaccel.training.validation import Validation

# Hooks of a pass that no fit calls: `explain`, the fallback of a first step that fails, repairs
# and predictions ask for them. A new one must be called by a training here, or stand here.
NOT_IN_A_FIT = {"layers", "describe", "findings", "fallback_reason", "sparing"}

pytestmark = pytest.mark.usefixtures("unoptimised")


def hooks():
    """The functions of a pass, by what `Pass` has and by what the trainings' pass has."""
    found = {}
    for kind in (Pass, Same):
        for name, value in vars(kind).items():
            function = value.fget if isinstance(value, property) else inspect.unwrap(value)
            function = getattr(function, "__func__", function)
            if inspect.isfunction(function) and not name.startswith("_"):
                found[name] = function.__code__
    return found


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("given", "too_short") else pytest.param(n, marks=pytest.mark.slow)
        for n in TRAININGS
    ],
)
def test_the_trainings_go_their_ways(name):
    trained, calls = recorded(name)
    assert " ".join(trained.path).startswith(TRAININGS[name].path)
    assert not trained.warnings and not trained.left and trained.error is None
    assert len(calls) > 100 and all(c.co_filename.startswith(PACKAGE) for c in calls)


@pytest.mark.slow
def test_every_phase_and_every_hook_is_made_to_fail():
    visited = {phase for name in TRAININGS for phase in recorded(name)[0].path}
    assert visited == {phase.name for phase in Phase}
    called = {code.co_name for name in TRAININGS for code in recorded(name)[1]}
    own = {name for name in vars(Same) if not name.startswith("_")}
    assert set(hooks()) - NOT_IN_A_FIT <= called | own


@crossed(
    ("error", "point"),
    {type(error).__name__: error for error in FAULTS},
    {
        "copy of the state": (Snapshot.of, 1),
        "phase": (Phases.enter, 1),
        "beside a step": (NaNGuard.passed, 2),
    },
)
def test_a_fault_beside_a_given_plan_s_steps(point, error):
    function, nth = point
    assert problems_with("given", function.__code__, nth, error) == []


@pytest.mark.parametrize("name", ["unsupported", "prepare", "compiles_sizes", "applied"])
def test_a_hook_that_fails(name):
    assert problems_with("given", hooks()[name]) == []


@pytest.mark.parametrize(
    "function", [Observed.feed, TakenBatches.take, TakenBatches.fed, workload.shapes]
)
def test_no_batch_is_lost(function):
    assert problems_with("trials", function.__code__) == []


@pytest.mark.parametrize(
    "function", [PlanRun.begin_validation, Validation._first_user, Validation._timed]
)
def test_a_fault_beside_a_validation(function):
    assert problems_with("given", function.__code__) == []


def test_an_interruption_is_the_user_s():
    code = timing.wait_for.__code__
    assert problems_with("given", code, error=KeyboardInterrupt()) == []


@pytest.mark.slow
@pytest.mark.parametrize("error", FAULTS[2:], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("function", [json_files.replace_text, PlanCache.load, PlanCache.path_of])
def test_a_cache_that_fails(function, error):
    assert problems_with("trials", function.__code__, error=error) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAININGS)
def test_a_fault_at_every_point(name):
    assert not survey(name, rotation(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", hooks())
@pytest.mark.parametrize("training", ["trials", "raced"])
def test_every_hook_that_fails_in_a_choice(training, name):
    if name not in NOT_IN_A_FIT:
        problems = problems_with(training, hooks()[name])
        assert problems in ([], ["it did not happen"], ["silent"])


@pytest.mark.parametrize(
    "name", ["given", *(pytest.param(n, marks=pytest.mark.slow) for n in ("trials", "raced"))]
)
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"step": 0.0}, id="clock stands still"),
        pytest.param({"step": -0.1}, id="clock runs backwards"),
        pytest.param({"step": 1e9}, id="clock jumps"),
        pytest.param({"settings": {"cache_dir": "/dev/null/none"}}, id="no cache folder"),
    ],
)
def test_whatever_clock_and_cache_there_are_a_training_is_keras_s(name, change):
    training = TRAININGS[name]
    settings = training.settings | change.get("settings", {})
    trained = dataclasses.replace(training, **change | {"settings": settings}).run()
    assert trained.error is None and not trained.left and len(trained.warnings) <= 1
    assert trained.history == fault_trainings.stock(name).history
    for left, right in zip(trained.state, fault_trainings.stock(name).state, strict=True):
        np.testing.assert_array_equal(left, right)


def test_nothing_is_left_of_fault_trainings():
    assert fault_trainings.stock("given").left == []
