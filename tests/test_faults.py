"""A fault at every point at which tfaccel runs inside a fit: the training is Keras's own."""

import dataclasses
import errno
import inspect

import fault_trainings
import numpy as np
import pytest
import tensorflow as tf
from fault_points import PACKAGE, name_of
from fault_trainings import TRAININGS, Same, problems_with, recorded

from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.callbacks import AccelCallback
from tfaccel.core.plan import Pass
from tfaccel.measure import timing
from tfaccel.steps.snapshot import Snapshot
from tfaccel.system import json_files
from tfaccel.training.nan_guard import NaNGuard
from tfaccel.training.phases import Phase, Phases

# Hooks of a pass that no fit calls: `explain`, the fallback of a first step that fails, repairs
# and predictions ask for them. A new one must be called by a training here, or stand here.
NOT_IN_A_FIT = {"layers", "describe", "findings", "fallback_reason", "sparing"}
# What catches faults, and what Keras calls: nothing stands above these.
LAST_LINES = {
    *(name for name in vars(AccelCallback) if name.startswith("on_")),
    *(
        "note",
        "run_own",
        "_own_work",
        "_give_up",
        "leave",
        "_remove",
        "_leave_unless_needed",
        "_history",
        "__call__",
    ),
}
# Where these fail a batch is in hand that can't be fed again: the next one is trained on instead.
IN_HAND = {"feed", "_timed_step", "_tried", "<genexpr>"}
FAULTS = [
    RuntimeError("a fault"),
    tf.errors.ResourceExhaustedError(None, None, "out of memory"),
    MemoryError(),
    OSError(errno.ENOSPC, "No space left on device"),
]

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


def points(name, *folders):
    """Functions of tfaccel that run in a training, with the entries that are made to fail."""
    for code, count in recorded(name)[1].items():
        module = name_of(code)
        if code.co_name not in LAST_LINES | IN_HAND and module.startswith(folders):
            yield from ((code, nth) for nth in sorted({1, count}))


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


@pytest.mark.parametrize("error", FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(
    "point",
    [
        pytest.param((Snapshot.of, 1), id="copy of the state"),
        pytest.param((Phases.enter, 1), id="phase"),
        pytest.param((NaNGuard.passed, 2), id="beside a step"),
    ],
)
def test_a_fault_beside_a_given_plan_s_steps(point, error):
    function, nth = point
    assert problems_with("given", function.__code__, nth, error) == []


@pytest.mark.parametrize("name", ["unsupported", "prepare", "compiles_sizes", "applied"])
def test_a_hook_that_fails(name):
    assert problems_with("given", hooks()[name]) == []


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
    folders = ("training", "fit", "callbacks")
    found = {
        f"{name_of(code)}#{nth}": problems
        for code, nth in points(name, *folders)
        if (problems := problems_with(name, code, nth))
    }
    assert not found


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
