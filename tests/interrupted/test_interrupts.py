"""Ctrl-C, or a handler that raises, in the midst of each phase: the fit ends as Keras's does.

Nothing of tfaccel's is left on the model, and its values are those after a step of the original.
"""

import dataclasses
import signal

import numpy as np
import pytest
import tensorflow as tf
from fault_grid import interrupts, survey
from fault_points import Recorder, doing, failing
from fault_trainings import (
    TRAININGS,
    Same,
    problems_with,
    stock_steps,
    wrong_when_interrupted,
)

from tfaccel.autotune.comparison.traced_observer import TracedObserver
from tfaccel.compat.patching import instance_attribute
from tfaccel.measure import racing
from tfaccel.steps.resources import Resource
from tfaccel.steps.snapshot import Snapshot
from tfaccel.training.choose import PlanChooser
from tfaccel.training.guarded_step import GuardedStep
from tfaccel.training.live_race import LiveRace
from tfaccel.training.observe import Observing
from tfaccel.training.validation import Validation

pytestmark = pytest.mark.usefixtures("unoptimised")

# In which training, at which entry of what.
POINTS = {
    "observing": ("raced", Observing._timed_step, 2),
    "choosing": ("raced", PlanChooser.choose, 1),
    "a check": ("cached", TracedObserver.observe, 1),
    "a trial": ("trials", racing.race, 1),
    "putting back": ("trials", Snapshot.restore, 2),
    "a race": ("raced", LiveRace.__call__, 5),
    "a plan's step": ("given", GuardedStep._run, 4),
    "a validation": ("given", Validation._run, 3),
}


@pytest.mark.parametrize("point", POINTS)
def test_an_interruption_ends_the_fit_and_leaves_nothing(point):
    name, function, nth = POINTS[point]
    assert problems_with(name, function.__code__, nth, KeyboardInterrupt()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_handler_s_exception_is_the_user_s(number):
    """As programs do that a cluster may ask to end: the handler raises SystemExit."""
    error = SystemExit(128 + number)

    def handle(*_):
        raise error

    before = signal.signal(number, handle)
    try:
        with doing(racing.race.__code__, lambda: signal.raise_signal(number)) as happened:
            trained = TRAININGS["trials"].run()
    finally:
        signal.signal(number, before)
    assert happened and not trained.left
    assert wrong_when_interrupted(trained, error, stock_steps("trials")) == []


@dataclasses.dataclass(frozen=True)
class BreaksLater(Same):
    """After some steps it breaks the weights."""

    name = "breaks_later"

    def applied(self, context):
        model = context.workload.model
        layer, steps = model.layers[-1], model.optimizer.iterations
        call = layer.call

        def broken(x, **given):
            return call(x, **given) * tf.where(steps.value > 4, np.float32("nan"), np.float32(1.0))

        return instance_attribute(layer, "call", broken)


def is_of_a_step(trained, error):
    # The last good state that was kept may be some steps old.
    trained.steps_made = int(trained.weights[2])
    return not wrong_when_interrupted(trained, error, stock_steps("given")) and not trained.left


def test_an_interruption_before_anybody_saw_that_the_plan_broke_the_weights():
    training = dataclasses.replace(TRAININGS["given"], plan=[BreaksLater()])
    code, error = GuardedStep._checked.__code__, KeyboardInterrupt()
    recorder = Recorder()
    training.run(inside=lambda: recorder)
    last = recorder.calls[code]
    assert is_of_a_step(training.run(inside=lambda: failing(code, error, last)), error)


def test_an_interruption_while_a_good_state_is_put_back(monkeypatch):
    """It comes when some variables have their values again, and others do not."""
    training = dataclasses.replace(TRAININGS["given"], plan=[BreaksLater()])
    write, written, error = Resource.write, [], KeyboardInterrupt()

    def interrupted(self, value):
        write(self, value)
        written.append(self)
        if len(written) == 1:
            raise error

    monkeypatch.setattr(Resource, "write", interrupted)
    assert is_of_a_step(training.run(), error) and len(written) > 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trials", "raced"])
def test_an_interruption_at_every_point(name):
    assert not survey(name, interrupts(name))


def test_steps_of_stock_are_told_apart():
    """Else none of the above would say anything."""
    steps = stock_steps("given")
    assert [*steps] == [*range(15)]
    assert not np.array_equal(steps[1][0], steps[2][0])
