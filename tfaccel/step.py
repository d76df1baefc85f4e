"""Building a step under a plan."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import tensorflow as tf

from tfaccel.plan import Plan
from tfaccel.scoped import instance_attribute
from tfaccel.workload import Workload

Kind = Literal["train", "test"]
StepFunction = Callable[[Any], Any]
# Called at the end of each trace with the graph that was traced.
OnTrace = Callable[[tf.Graph], None]


def build_step(
    workload: Workload,
    plan: Plan,
    kind: Kind = "train",
    on_trace: OnTrace | None = None,
) -> StepFunction:
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
    workload = workload.for_step()
    model = workload.model
    step, function = f"{kind}_step", f"{kind}_function"
    user_step = getattr(model, step)

    def step_under_plan(data: Any) -> Any:
        with plan.applied(workload):
            outputs = user_step(data)
        if on_trace is not None:
            on_trace(tf.compat.v1.get_default_graph())
        return outputs

    with contextlib.ExitStack() as stack:
        stack.enter_context(_kept(model, function))
        stack.enter_context(plan.applied(workload))
        stack.enter_context(instance_attribute(model, step, step_under_plan))
        getattr(model, f"make_{function}")(force=True)
        return getattr(model, function)


@contextlib.contextmanager
def _kept(owner: Any, name: str) -> Iterator[None]:
    """Puts the attribute back to what it is now, whatever happens meanwhile."""
    value = getattr(owner, name)
    try:
        yield
    finally:
        setattr(owner, name, value)
