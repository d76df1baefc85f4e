"""Layers by the kernels that measuring chose for their shapes, in each direction."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import keras

from tfaccel.compat import keras_private
from tfaccel.compat.patching import instance_attribute, set_attribute
from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.plan import Plan
from tfaccel.core.prior import CONVOLUTIONS, Prior
from tfaccel.core.replicas import local_batches
from tfaccel.core.step_context import StepContext
from tfaccel.core.tracing import trace_forward, trace_step
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import Clock
from tfaccel.ops.kernels import DIRECTIONS, FAMILIES, CallSpec, Chooser
from tfaccel.passes.kernels import _layers
from tfaccel.passes.kernels._selection import Selection
from tfaccel.steps.worker_agreement import agreement_of
from tfaccel.system.arguments import one_of

# The share of a training that measuring may take, and the least it is given.
_MEASURING_SHARE, _LEAST_MEASURING_SECONDS = 0.04, 5.0


@dataclasses.dataclass(frozen=True)
class Kernels(LayerPass):
    """Runs convolutions and Dense layers by the kernels that were fastest for their shapes.

    cuDNN picks the fastest algorithm for each convolution; TensorFlow on a CPU has one.
    Before a step is traced, the shapes that the layers see are noted in one forward pass (or
    in the user's own `train_step`) that is traced and not run; the kernels of `tfaccel.ops`
    are measured on them, forward, input gradient and weight gradient each by itself (for
    predictions forward alone); and while the step is traced, layers use those that won. A
    layer for which nothing won keeps Keras's own code. What was measured is kept on disk, so
    that a shape is measured once in a machine's life.

    Served are Conv1D, Conv2D, Conv3D, DepthwiseConv2D, SeparableConv2D and Dense, and
    subclasses that leave their `call` alone; and the products that other passes of the plan
    make of a layer (`fused_attention`).

    Args:
        max_seconds: what measuring may take at most; the largest products come first.
        reduced: whether kernels may multiply float32 in bfloat16.
        exhaustive: whether every kernel is measured; else the two that are likely to win, by
            what was measured on calls like these (`tfaccel/ops/kernels/_likely.py`).
        families: kernels to measure that are otherwise left out: `("opencl",)` tries an OpenCL
            device that is no GPU.

    Raises:
        ValueError: `max_seconds` is not positive, or there is no such family.

    >>> accel = tfaccel.AccelCallback([tfaccel.passes.Kernels(max_seconds=10)])

    Source: Chetlur et al., cuDNN: Efficient Primitives for Deep Learning,
    https://arxiv.org/abs/1410.0759; docs/kernels.md has the source of each kernel.
    """

    name: ClassVar[str] = "kernels"
    no_layer: ClassVar[str] = "the model has no convolution or Dense layer"
    kinds: ClassVar[tuple[type, ...]] = _layers.KINDS
    # Kernels are made of several ops where TensorFlow has one.
    compile_factor: ClassVar[float] = 1.3
    needs_batch: ClassVar[bool] = True

    max_seconds: float = 60.0
    reduced: bool = False
    exhaustive: bool = False
    families: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "families", tuple(self.families))  # JSON has lists
        for family in self.families:
            one_of("families", family, FAMILIES)
        if not self.max_seconds > 0:
            raise ValueError(f"`max_seconds` must be positive. Received: {self.max_seconds!r}")

    def unsupported_step(self, workload: Workload) -> Unsupported | None:
        if workload.model.jit_compile:
            return Refusal.NO_USE("the model uses XLA, which has kernels of its own")
        return None

    def obstacle(self, layer: Any, workload: Workload) -> Unsupported | None:
        return _layers.obstacle(layer)

    def prior(self, workload: Workload) -> Prior:
        slow = workload.device.kind == "CPU" and workload.has(*CONVOLUTIONS)
        return Prior(
            pays=workload.training and slow,
            gain=1.1,
            prepare_seconds=self._measuring_seconds(workload),
            reason="on a CPU TensorFlow has one algorithm for all convolutions, on a GPU cuDNN "
            "picks one; predictions try what costs no measuring first",
        )

    def _measuring_seconds(self, workload: Workload) -> float:
        """What measuring is worth for what is left of the training."""
        to_come = (workload.steps_to_come or 0) * workload.step_seconds
        return min(self.max_seconds, max(_LEAST_MEASURING_SECONDS, _MEASURING_SHARE * to_come))

    def prepare(self, context: StepContext, plan: Plan, clock: Clock, deadline: float) -> None:
        deadline = min(deadline, clock() + self.max_seconds)
        workload, selection = context.workload, self.selection(context)
        # The layers' dtypes decide which calls there are.
        key = tuple(item.compute_dtype(workload) for item in plan.passes)
        if not workload.batches or key in selection.looked_at:
            return
        agreement = agreement_of(workload.model.distribute_strategy)
        # Each reading is one of all processes, and only one of them measures.
        left = deadline - clock()
        own = clock if agreement.is_alone else time.perf_counter
        error = None
        try:
            with plan.applied(context), instance_attribute(selection, "recording", True):
                _trace(workload)
            selection.looked_at.add(key)
            if agreement.is_chief:
                selection.measure(workload.step_seconds, own, own() + left)
        except Exception as raised:
            error = raised
        if agreement.any(error is not None):
            raise error or RuntimeError("another worker could not measure kernels")
        selection.rankings = agreement.same(selection.rankings)

    def compiles_sizes(self, workload: Workload) -> bool:
        # XLA can't compile a part of a step that several replicas run.
        return not workload.sizes_vary and workload.num_replicas == 1

    @contextlib.contextmanager
    def applied(self, context: StepContext) -> Iterator[None]:
        # For passes that make products of their own, too, such as fused_attention.
        with set_attribute(context, "chooser", self._chooser(context)), super().applied(context):
            yield

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        yield "call", _layers.kernel_call(layer, context.chooser)

    def _chooser(self, context: StepContext) -> Chooser:
        model, selection = context.workload.model, self.selection(context)
        compiled = self.compiles_sizes(context.workload)

        def wanted(layer: str, specs: list[CallSpec]) -> bool:
            # Read while tracing: the pass `xla` may be entered after this one.
            return not model.jit_compile and selection.wanted(layer, specs, compiled)

        return Chooser(wanted, functools.partial(selection.choose, compiled=compiled))

    def findings(self, context: StepContext) -> tuple[str, ...]:
        selection = self.selection(context)
        lines = []
        for layer, specs in selection.seen.items():
            for spec in specs:
                used, others = selection.words(spec)
                if others:
                    what = used or "TensorFlow's own"
                    lines.append(f"{self.name}: {layer} ({spec}): {what} [{'; '.join(others)}]")
        return tuple(lines)

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        """What is known on this machine of a layer's kernels."""
        try:
            specs = _layers.calls(layer, layer.input.shape, runs.dtype)
        except (
            AttributeError,
            ValueError,
            RuntimeError,
        ):  # never called on symbols, or several times
            return LayerNote(runs)
        selection = self.selection(StepContext(workload))
        words = [selection.words(spec) for spec in specs]
        used = "; ".join(said for said, _ in words if said)
        why_not = tuple(clause for _, others in words for clause in others)
        return LayerNote(runs.extended(used), why_not)

    def selection(self, context: StepContext) -> Selection:
        """The calls that were seen of a workload and what was measured, kept with its context."""
        directions = DIRECTIONS if context.workload.training else DIRECTIONS[:1]
        # Predictions may be exported.
        families = self.families if context.workload.training else None
        selection = Selection(self.reduced, directions, self.exhaustive, families)
        return context.prepared.setdefault(self.name, selection)


def _trace(workload: Workload) -> None:
    """Traces the layers' calls as a step makes them; nothing is run."""
    model, batch = workload.model, workload.batches[0]
    if workload.strategy is not None:
        batch = local_batches(batch)[0]
    has_own_step = keras_private.overridden(model, keras.Model, "train_step", "compute_loss")
    if workload.training and has_own_step and workload.strategy is None:
        trace_step(model, batch)
    else:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
        trace_forward(model, x, workload.training, workload.strategy)
