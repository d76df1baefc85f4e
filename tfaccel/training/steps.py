"""Which step runs in each phase of a training."""

from typing import Any

import keras
import tensorflow as tf

from tfaccel.steps.compiled_step import StepFunction
from tfaccel.training.course import Course
from tfaccel.training.observe import Observing
from tfaccel.training.phases import IllegalTransitionError, Phase


class Steps:
    """Runs the steps of a training by its phase, which `Course` changes.

    Args:
        model: what is trained.
        baseline: the original step.
        course: of the training.
    """

    def __init__(self, model: keras.Model, baseline: StepFunction, course: Course):
        self._run_own = course.run_own
        self._course = course
        self._observing = Observing(model, baseline, course, self._dispatch)

    def run(self, iterator: tf.data.Iterator) -> Any:
        """One step of the training, on the batch that is next."""
        return self._dispatch(self._course.observed.fed(iterator))

    def _dispatch(self, iterator: tf.data.Iterator) -> Any:
        """One step, by the only table that says who runs it."""
        course, step = self._course, self._course.plan_run.step
        match course.phase:
            case Phase.OBSERVE:
                return self._observing.observe(iterator)
            case Phase.AWAIT_LENGTH:
                return self._observing.await_length(iterator)
            case Phase.RACE:
                return course.race(iterator)
            case Phase.RUN if step is not None:
                return course.run(iterator)
            case Phase.STAY:
                course.stop_unless_needed()
            case phase:
                with course.own_work():
                    raise IllegalTransitionError(f"No step runs in phase {phase.name}.")
        return self._run_own(iterator)
