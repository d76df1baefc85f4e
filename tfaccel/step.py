"""Building a step under a plan."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Literal

import tensorflow as tf

from tfaccel.plan import Plan
from tfaccel.scoped import SharedContext, instance_attribute
from tfaccel.workload import Workload

Kind = Literal["train", "test"]
StepFunction = Callable[[Any], Any]
# Called at the end of each trace with the graph that was traced.
OnTrace = Callable[[tf.Graph], None]


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """A step that tfaccel built: a `StepFunction` that knows whose a NaN is.

    Attributes:
        function: runs one step.
        bad_data: set by a step whose results and whose own batch are not finite.
        scratch: the variables that the plan's passes keep from step to step.
    """

    function: StepFunction
    bad_data: tf.Variable
    scratch: dict[str, Any]

    def __call__(self, iterator: Any) -> Any:
        return self.function(iterator)

    def took_bad_data(self) -> bool:
        """Whether a non-finite result since the last call met a non-finite batch."""
        found = bool(self.bad_data.numpy())
        self.bad_data.assign(False)
        return found


def build_step(
    workload: Workload,
    plan: Plan,
    kind: Kind = "train",
    on_trace: OnTrace | None = None,
) -> BuiltStep:
    """A function like `model.train_function`, traced under `plan`.

    Keras's own `make_train_function` (or `make_test_function`) builds it, around
    a `train_step` that enters the plan's passes. Python code inside a
    `tf.function` runs only while it is traced, so the passes are active during
    every trace (a new batch shape brings another one) and at no other time.

    Args:
        workload: the model and what its passes need to know.
        plan: what to apply.
        kind: `"train"` or `"test"`.
        on_trace: called with the graph at the end of each trace.

    Returns:
        A function of an iterator that runs one step (`steps_per_execution` of
        them) and returns the logs. Building does not trace; the first call does.
    """
    bad_data = tf.Variable(False, trainable=False)
    workload = workload.for_step()
    model = workload.model
    step, function = f"{kind}_step", f"{kind}_function"
    user_step = getattr(model, step)

    under_plan = SharedContext(lambda: plan.applied(workload))

    def step_under_plan(data: Any) -> Any:
        with under_plan:
            outputs = user_step(data)
        _note_bad_data(data, outputs, bad_data)
        if on_trace is not None:
            on_trace(tf.compat.v1.get_default_graph())
        return outputs

    with contextlib.ExitStack() as stack:
        stack.enter_context(_kept(model, function))
        stack.enter_context(plan.applied(workload))
        stack.enter_context(instance_attribute(model, step, step_under_plan))
        getattr(model, f"make_{function}")(force=True)
        return BuiltStep(getattr(model, function), bad_data, workload.scratch)


def _note_bad_data(data: Any, outputs: Any, bad_data: tf.Variable) -> None:
    """Looks at the batch, but only when the step's results are not finite: no cost till then."""

    def note() -> None:
        bad_data.assign(bad_data | ~_all_finite(data))

    tf.cond(_all_finite(outputs), lambda: None, note)


def _all_finite(structure: Any) -> tf.Tensor:
    """Whether every floating-point tensor of a structure is finite."""
    leaves = tf.nest.flatten(structure, expand_composites=True)
    floats = [t for t in leaves if isinstance(t, tf.Tensor) and t.dtype.is_floating]
    return tf.reduce_all([True, *(tf.reduce_all(tf.math.is_finite(t)) for t in floats)])


@contextlib.contextmanager
def _kept(owner: Any, name: str) -> Iterator[None]:
    """Puts the attribute back to what it is now, whatever happens meanwhile."""
    value = getattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, value)
