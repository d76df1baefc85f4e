"""plan_applied: a plan around all that the user traces."""

import contextlib
import os
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfaccel.autotune.explicit_plan import left_out, served
from tfaccel.core.plan import Pass, Plan, as_plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.loops.arguments import as_models, as_optimizers
from tfaccel.passes.xla import XLA
from tfaccel.steps.looped_model import LoopedModel

# The variables that passes keep from step to step live as long as the model.
_KEPT: "weakref.WeakKeyDictionary[Any, list[StepContext]]" = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def plan_applied(
    plan: Plan | Sequence[str | Pass] | str | os.PathLike[str],
    model: keras.Model | Sequence[keras.Model],
    optimizer: keras.optimizers.Optimizer | Sequence[keras.optimizers.Optimizer] | None = None,
) -> Iterator[Plan]:
    """Applies a plan to all that is traced inside of the block.

    It is for users who trace steps themselves and know the plan: nothing is tried, timed or
    compared. Python code of a `tf.function` runs while it is traced and at no other time, so a
    function that is traced in the block runs under the plan from then on, and one that was traced
    before does not. On leaving, models and optimizers are exactly what they were.

    Passes that can't serve are left out, with a warning: those that refuse these models, those
    that must see batches first (`kernels`), and those that are not in the trace: `step_batching`,
    and `xla`, in whose place `tf.function(jit_compile=True)` stands.

    Args:
        plan: as in `AccelCallback`, but for `"auto"`.
        model: the model, or several; built already, or built in the block.
        optimizer: the optimizer, or several; None where the plan is for predictions or for
            updates by hand. Best built already (`optimizer.build(model.trainable_variables)`).

    Yields:
        The plan that is applied.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> optimizer = keras.optimizers.SGD(0.1)
    >>> optimizer.build(model.trainable_variables)
    >>> @tf.function
    ... def step(x):
    ...     with tf.GradientTape() as tape:
    ...         loss = tf.reduce_mean(model(x, training=True) ** 2)
    ...     optimizer.apply(tape.gradient(loss, model.trainable_variables))
    ...     return loss
    >>> with tfaccel.plan_applied(["fused_optimizer"], model, optimizer) as plan:
    ...     step = step.get_concrete_function(tf.TensorSpec((None, 4), tf.float32))
    >>> step(tf.ones((8, 4))).shape, str(plan)
    (TensorShape([]), 'fused_optimizer')
    """
    models, optimizers = as_models(model), as_optimizers(optimizer)
    if isinstance(plan, str) and plan == "auto":
        raise ValueError(
            "`plan` must say what to apply; accelerate_step finds out. Received: 'auto'"
        )
    workload = Workload(LoopedModel(models, optimizers))
    wanted = served(_in_trace(as_plan(plan)), workload)
    context = StepContext(workload)
    _KEPT.setdefault(models[0], []).append(context)
    with wanted.applied(context):
        yield wanted


def _in_trace(plan: Plan) -> Plan:
    """The plan without passes that act outside a trace or before it."""
    for item in plan.passes:
        if isinstance(item, XLA):
            plan = left_out(plan, item.name, "write tf.function(jit_compile=True)")
        elif item.needs_batch:
            plan = left_out(plan, item.name, "it must see a batch; use accelerate_step")
    return plan
