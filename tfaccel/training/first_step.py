"""The first step of a fit, which may fail where a plan's step would run."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.fallback_plan import fallback, fallbacks, may_help
from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.workload import Workload
from tfaccel.steps.snapshot import Snapshot, build_used_optimizer
from tfaccel.steps.worker_agreement import WorkerAgreement


class FirstStepFallback:
    """The state before the first step, and the passes that help if that step fails.

    Args:
        passes: gives the passes under which the step may run.
        plan: that the user gave; None to take one of these passes.
        before: all state that a step which fails half way may have changed.
    """

    def __init__(self, passes: Callable[[], Sequence[Pass]], plan: Plan | None, before: Snapshot):
        self._passes = passes
        self._plan = plan
        self._before = before

    @classmethod
    def of(cls, workload: Workload, settings: Options, batch: Any) -> "FirstStepFallback | None":
        """None where no pass could help, or the state can't be known before the step ran."""
        if workload.in_loop:
            return None  # the step may assign variables that nobody knows of yet
        if not (workload.model.built or workload.strategy is None):
            return None
        if not may_help(workload, settings):
            return None
        before = _complete_state(workload, batch)
        return cls(
            lambda: fallbacks(workload, settings.considered, settings.plan), settings.plan, before
        )

    def agree_on_report(self, error: Exception | None, agreement: WorkerAgreement) -> Report | None:
        """How to go on after the first step; None where it ran, or where nothing helps.

        Every process must ask, whether or not its step failed: all go on in one way.

        Args:
            error: what the step raised; None where it ran.
            agreement: of the processes that train together.
        """
        report = None if error is None else fallback(self._passes(), error, self._plan)
        return None if agreement.any(report is None) else report

    def restore(self, model: keras.Model) -> None:
        """Puts the state from before the step back."""
        self._before.restore()
        model.reset_metrics()


def _complete_state(workload: Workload, batch: Any) -> Snapshot:
    """All state that a step which fails half way may change, before any step has run."""
    model = workload.model
    if not model.built:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        tf.function(lambda x: model(x, training=True)).get_concrete_function(x)
    build_used_optimizer(model)
    return Snapshot.of(workload)
