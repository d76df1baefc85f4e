"""Building a step under a plan."""

import collections
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import tensorflow as tf

from tfaccel.compat.patching import SharedContext, instance_attribute, set_attribute
from tfaccel.compat.tensorflow_private import gradients_let_go
from tfaccel.core.compiled_sizes import Sizes, collected, shape_of
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared, StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.finite import all_finite_in_graph
from tfaccel.steps.held_batches import HeldBatches
from tfaccel.steps.multi_step import MultiStep
from tfaccel.steps.resources import Touched

Kind = Literal["train", "test"]
StepFunction = Callable[[Any], Any]
# Called at the end of each trace with the graph that was traced.
OnTrace = Callable[[tf.Graph], None]


@dataclasses.dataclass(frozen=True)
class BuiltStep:
    """A step that tfaccel built: a `StepFunction` that can tell whether its data caused a NaN.

    Attributes:
        function: runs one step; a `MultiStep` where the plan runs several in a call.
        bad_data: set by a step whose results and whose own batch are not finite.
        scratch: the variables that the plan's passes keep from step to step.
        touched: the state that the step uses, as far as it was traced.
        held: its latest batches; None where they are not held.
        steps_per_call: how many steps one call may run.
        ahead: the logs of steps that have run and are not handed out yet, in order.
        sizes: counts the sizes that XLA compiled parts of the step for; None where it compiles
            nothing anew for a size.
    """

    function: StepFunction | MultiStep
    bad_data: tf.Variable
    scratch: dict[str, Any]
    touched: Touched = dataclasses.field(default_factory=Touched)
    held: HeldBatches | None = None
    steps_per_call: int = 1
    ahead: collections.deque[Any] = dataclasses.field(default_factory=collections.deque)
    sizes: Sizes | None = None

    def __call__(self, iterator: Any) -> Any:
        return self.run(iterator, 1)[0]

    def run(self, iterator: Any, most: int) -> Sequence[Any]:
        """Runs 1 to `most` steps, and returns the logs of each, in order."""
        if isinstance(self.function, MultiStep):
            return self.function(iterator, min(most, self.steps_per_call))
        return (self.function(iterator),)

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
    holds: bool = False,
    prepared: Prepared | None = None,
) -> BuiltStep:
    """A function like `model.train_function`, traced under `plan`.

    Keras's own `make_train_function` (or `make_test_function`) builds it, around a `train_step`
    that enters the plan's passes. Python code inside a `tf.function` runs only while it is traced,
    so the passes are active during every trace (a new batch shape brings another one) and at no
    other time.

    Args:
        workload: the model and its facts.
        plan: what to apply.
        kind: `"train"` or `"test"`.
        on_trace: called with the graph at the end of each trace.
        holds: whether the step should hold its latest batches, where that costs little:
            without a strategy, on a CPU, and not under XLA, which can't.
        prepared: what the plan's passes found out before.
    """
    bad_data, touched = tf.Variable(False, trainable=False), Touched()
    can_hold = holds and workload.strategy is None and workload.device.kind == "CPU"
    holding = HeldBatches() if can_hold else None
    context = StepContext(workload, prepared=prepared if prepared is not None else Prepared())
    model = workload.model
    alone = workload.num_replicas == 1  # several replicas are traced in one graph
    # The user's own step is compiled for each size, too, so another would be no better.
    sizes = Sizes() if alone and not model.jit_compile and plan.compiles_sizes(workload) else None
    step, function = f"{kind}_step", f"{kind}_function"
    user_step = getattr(model, step)

    under_plan = SharedContext(lambda: plan.applied(context))

    def step_under_plan(data: Any) -> Any:
        graph = tf.compat.v1.get_default_graph()
        with gradients_let_go(graph, alone), under_plan, collected() as compiled:
            held = data if holding is None else holding.hold(data, bool(model.jit_compile))
            outputs = user_step(held)
            whole = compiled.inside or bool(model.jit_compile)
        if sizes is not None:
            sizes.note([*compiled.shapes, *(_shapes(data) if whole else ())])
        _note_bad_data(data, outputs, bad_data)
        touched.add(graph)
        if on_trace is not None:
            on_trace(graph)
        return outputs

    with contextlib.ExitStack() as stack:
        stack.enter_context(set_attribute(model, function, getattr(model, function)))
        stack.enter_context(plan.applied(context))
        stack.enter_context(instance_attribute(model, step, step_under_plan))
        getattr(model, f"make_{function}")(force=True)
        built = getattr(model, function)
    most = plan.steps_per_call if kind == "train" else 1
    made = MultiStep(built, model.steps_per_execution) if most > 1 else built
    return BuiltStep(made, bad_data, context.scratch, touched, holding, most, sizes=sizes)


def _shapes(data: Any) -> list[tf.Tensor]:
    leaves = tf.nest.flatten(data, expand_composites=True)
    return [shape for leaf in leaves if isinstance(leaf, tf.Tensor) for shape in shape_of(leaf)]


@contextlib.contextmanager
def unheard_traces() -> Iterator[None]:
    """Keeps TensorFlow from warning that functions are traced often: tfaccel makes new ones."""
    logger = tf.get_logger()
    logger.addFilter(_is_news)
    try:
        yield
    finally:
        logger.removeFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return "triggered tf.function retracing" not in record.getMessage()


def _note_bad_data(data: Any, outputs: Any, bad_data: tf.Variable) -> None:
    """Looks at the batch only when the step's results are not finite, so it costs nothing else."""

    def note() -> None:
        bad_data.assign(bad_data | ~all_finite_in_graph(data))

    tf.cond(all_finite_in_graph(outputs), lambda: None, note)
