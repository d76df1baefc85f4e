"""Several steps in one call."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import keras

from tfaccel.compat import keras_private
from tfaccel.compat.tensorflow_private import feeds_captures_in_loops
from tfaccel.core.plan import Pass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.measure.units import milliseconds
from tfaccel.system.arguments import is_whole

# A call should take no longer than this: a tenth of a second feels like an instant, so nobody
# sees that a progress bar's numbers come in groups.
# Source: Miller, Response time in man-computer conversational transactions, 1968.
CALL_SECONDS = 0.1
# Steps a call that are considered. The cost of a call is shared by its steps: 32 steps
# leave 3 % of it to each (`benchmarks/step_batching.py --curve` times them).
CHOICES = (4, 8, 16, 32)
# What a call costs beside its step: Python, the way into the graph and back, and the logs.
_CALL_SECONDS = 1e-3
_HOOKS = ("on_train_batch_begin", "on_train_batch_end", "on_batch_begin", "on_batch_end")


@dataclasses.dataclass(frozen=True)
class StepBatching(Pass):
    """Runs several steps in one call and hands their logs out one by one.

    A small model loses most of its time between steps: in Python, in the way into the
    compiled step and back, in logs that are read one by one. Here one call runs the
    next steps in a loop within TensorFlow, and Keras's next calls are handed the logs
    that are there already. Steps, batches, their order and every step's logs are
    those of the untouched training. Unlike under `steps_per_execution`, callbacks and the
    progress bar see each step's logs.

    A call never goes beyond the epoch, nor beyond a loss that is not finite. Only a
    callback that looks at the model, or at the clock, after each batch could tell the
    difference: it would see the model some steps further on. Where there is one the
    pass refuses and names it. Keras's own are known: see `acts_per_batch`.

    Args:
        steps: the most steps in a call, at least 2.
        allow_batch_hooks: whether to batch steps in spite of callbacks that act at
            every batch. They are handed each step's logs in order; a training that
            such a callback stops has run up to `steps - 1` steps more by then.

    Raises:
        ValueError: `steps` is not an integer of at least 2.

    >>> accel = tfaccel.AccelCallback([tfaccel.passes.StepBatching(8)])

    Source: `steps_per_execution` of
    https://keras.io/api/models/model_training_apis/#compile-method, which hands out the
    last logs only.
    """

    name: ClassVar[str] = "step_batching"
    # Tracing the loop takes 1.0 to 1.2 times as long as tracing the step.
    compile_factor: ClassVar[float] = 1.2
    serves_validation: ClassVar[bool] = False
    changes_step: ClassVar[bool] = False

    steps: int = CHOICES[-1]
    allow_batch_hooks: bool = False

    def __post_init__(self) -> None:
        if not is_whole(self.steps) or self.steps < 2:
            raise ValueError(f"`steps` must be an integer of at least 2. Received: {self.steps!r}")

    @property
    def steps_per_call(self) -> int:
        return self.steps

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if workload.in_loop:
            return Refusal.TASK("a loop hands over one batch at a time", "use `fit`")
        model = workload.model
        maker = keras_private.overridden(model, keras.Model, "make_train_function")
        if maker is not None:
            return Refusal.OWN_CODE(f"{type(model).__name__} has a {maker} of its own")
        if workload.num_replicas > 1 and not feeds_captures_in_loops():
            return Refusal.REPLICAS("this TensorFlow can't run a step of several in a loop")
        if workload.step_seconds * CHOICES[0] > CALL_SECONDS:
            return Refusal.NO_USE(
                f"a step takes {milliseconds(workload.step_seconds)}, so the time between "
                "steps hardly counts"
            )
        return None if self.allow_batch_hooks else _watched(workload)

    @classmethod
    def suited(cls, workload: Workload) -> "StepBatching":
        """As many steps a call as `CALL_SECONDS` has room for, of `CHOICES`."""
        most = CALL_SECONDS / workload.step_seconds if workload.step_seconds else CHOICES[-1]
        return cls(max((c for c in CHOICES if c <= most), default=CHOICES[0]))

    def cache_key(self, workload: Workload) -> bool:
        return is_watched(workload)

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            gain=1.0 + _CALL_SECONDS / max(workload.step_seconds, _CALL_SECONDS),
            reason="a small model loses more time between steps than in them; a large one is "
            "refused",
        )

    def applied(self, context: StepContext) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


def is_watched(workload: Workload) -> bool:
    """Whether a callback acts at every batch."""
    return _watched(workload) is not None


def _watched(workload: Workload) -> Unsupported | None:
    remedy = "or allow it with StepBatching(allow_batch_hooks=True)"
    if workload.callbacks is None:
        return Refusal.OWN_CODE(
            "the callbacks of this training can't be seen", f"use `fit`, {remedy}"
        )
    for callback in workload.callbacks:
        hook = acts_per_batch(callback)
        if hook is not None:
            name = type(callback).__name__
            return Refusal.OWN_CODE(f"{name}.{hook} acts at every batch", f"leave it out, {remedy}")
    return None


def acts_per_batch(callback: keras.callbacks.Callback) -> str | None:
    """The hook by which a callback acts at every batch of a training; None where it doesn't.

    A callback without a hook for training batches doesn't. Keras's own that have one are known
    not to under the conditions of `_HARMLESS`. A subclass of theirs may have changed what the
    hook calls, so it counts as acting.
    """
    hook = keras_private.overridden(callback, keras.callbacks.Callback, *_HOOKS)
    if hook is None:
        return None
    harmless = _HARMLESS.get(type(callback))
    return None if harmless is not None and harmless(callback) else hook


def _is_per_epoch(callback: Any) -> bool:
    return bool(callback.save_freq == "epoch")


def _records_epochs(callback: keras.callbacks.TensorBoard) -> bool:
    """Whether it writes when an epoch ends and has no writer at batches, nor a stopwatch."""
    return (
        callback.update_freq == "epoch"
        and not callback.write_steps_per_second
        and not keras_private.traces_batches(callback)
    )


_HARMLESS: dict[type[keras.callbacks.Callback], Callable[[Any], bool]] = {
    # Shows the logs that it is handed, and those are exact.
    keras.callbacks.ProgbarLogger: lambda callback: True,
    # Looks at the loss alone; a call ends at the first that is not finite.
    keras.callbacks.TerminateOnNaN: lambda callback: True,
    keras.callbacks.ModelCheckpoint: _is_per_epoch,
    keras.callbacks.BackupAndRestore: _is_per_epoch,
    keras.callbacks.TensorBoard: _records_epochs,
}
