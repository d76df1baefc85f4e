"""Normalization layers by few loops or one operation, or with a shorter gradient."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, ClassVar

import keras

from tfaccel.core.layer_note import FUSED_BATCH_NORM, LayerNote, Runs, library
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Unsupported
from tfaccel.core.workload import Workload
from tfaccel.passes.normalization import _batch_norm, _layer_norm

# Loops for an input of one size are compiled in 0.3 to 0.9 s, and save about 1 ns a step for each
# of its numbers, where two or three layers of a net have inputs of that size (BUILD_NOTES.md; what
# is compiled is timed by `python benchmarks/trace_beside.py`, with `--loops` and without).
_PAYING_NUMBERS = 3e8
# A batch, where none is at hand: Keras's default.
_USUAL_SAMPLES = 32
_NORMS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)


@dataclasses.dataclass(frozen=True)
class FusedNorm(LayerPass):
    """Runs BatchNormalization by few loops, and LayerNormalization with a short gradient.

    Keras 3 makes both of a dozen elementwise ops and reductions. Here batch
    normalization (Ioffe and Szegedy, 2015) is, on a CPU in float32, a loop each that
    XLA compiles for the mean, the variance and the result, and two or three for the
    gradients. A relu, relu6, silu or gelu in an Activation or ReLU layer that follows is
    part of these loops. Elsewhere it is one FusedBatchNormV3, which is oneDNN's or
    cuDNN's and takes 16-bit inputs as they are. Layer normalization (Ba et al., 2016)
    has its gradient in closed form. The maths is Keras's to rounding: biased moving
    variance, any epsilon, float32 statistics.

    A layer keeps its own `call` where that would not be so: masks, `renorm`,
    `synchronized`, float64, a `call` of the user's. One thing differs from Keras on
    purpose: the gradient of gamma for an empty batch is 0, where Keras's is NaN.

    Derivatives of higher order are Keras's too, which lack a term: `tf.nn.moments` stops the
    gradient of the mean in the variance, which is zero, while its derivative is not. A plan
    must not change how a loss that contains a gradient trains.

    Args:
        loops: whether BatchNormalization is compiled loops (True) or FusedBatchNormV3
            everywhere (False). None: loops for inputs so large, in a training so long, that
            they make up for the time in which XLA compiles them. XLA compiles anew for each
            size, so inputs of which more than the batch's size is unknown while tracing get
            the op in any case, and so do batches that come in many sizes and several replicas.

    Raises:
        TypeError: `loops` is none of these.

    Source: https://arxiv.org/abs/1502.03167, https://arxiv.org/abs/1607.06450,
    https://www.tensorflow.org/api_docs/python/tf/raw_ops/FusedBatchNormV3,
    https://openxla.org/xla/tf2xla/tutorials/jit_compile
    """

    name: ClassVar[str] = "fused_norm"
    no_layer: ClassVar[str] = "the model has no BatchNormalization or LayerNormalization layer"
    kinds: ClassVar[tuple[type, ...]] = _NORMS

    loops: bool | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.loops, bool | None):
            raise TypeError(f"`loops` must be True, False or None. Received: {self.loops!r}")

    def obstacle(self, layer: Any, workload: Workload) -> Unsupported | None:
        if isinstance(layer, keras.layers.BatchNormalization):
            return _batch_norm.obstacle(layer, _takes_nchw(workload))
        return _layer_norm.obstacle(layer)

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """Every normalization layer, then activations that may join their loops, with why not."""
        norms = list(super().layers(workload))
        yield from norms
        if self.compiles(workload) and any(reason is None for _, reason in norms):
            yield from ((x, None) for x in workload.layers if _batch_norm.may_join(x))

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=workload.training,
            gain=1.1,
            reason="Keras 3 computes BatchNormalization by about ten ops; fused it is one (in "
            "predictions it is three, and mostly none, as it can be folded)",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        if isinstance(layer, keras.layers.LayerNormalization):
            return LayerNote(runs.extended("a shorter gradient"))
        if not isinstance(layer, keras.layers.BatchNormalization):
            return LayerNote(runs.replaced(op="part of the loops before it"))
        if self.compiles(workload) and runs.dtype == "float32":
            return LayerNote(runs.replaced(op="loops by XLA"))
        whose = library(FUSED_BATCH_NORM, workload.device)
        return LayerNote(runs.replaced(op=FUSED_BATCH_NORM, library=whose))

    def compiles(self, workload: Workload) -> bool:
        """Whether BatchNormalization in float32 runs by loops that XLA compiles."""
        usual = workload.num_replicas == 1 and not workload.sizes_vary
        return self.loops is not False and workload.device.kind == "CPU" and usual

    def _least_numbers(self, workload: Workload) -> float:
        """How many numbers of a sample pay for compiling loops for inputs of that size."""
        calls = workload.steps_to_come
        if self.loops or calls is None or workload.in_loop:  # a loop may go on for any time
            return 0.0
        steps = calls * workload.model.steps_per_execution
        return _PAYING_NUMBERS / max(1, steps * (workload.samples or _USUAL_SAMPLES))

    def compiles_sizes(self, workload: Workload) -> bool:
        served = [layer for layer, obstacle in self.layers(workload) if obstacle is None]
        has_loops = any(isinstance(x, keras.layers.BatchNormalization) for x in served)
        return self.compiles(workload) and has_loops

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        workload = context.workload
        if isinstance(layer, keras.layers.LayerNormalization):
            call = _layer_norm.fused_call(layer)
        elif isinstance(layer, keras.layers.BatchNormalization):
            least = self._least_numbers(workload) if self.compiles(workload) else math.inf
            call = _batch_norm.fused_call(layer, _takes_nchw(workload), least)
        else:
            call = _batch_norm.joined_call(layer)
        yield "call", call


def _takes_nchw(workload: Workload) -> bool:
    """Whether the device's FusedBatchNormV3 takes channels first."""
    return workload.device.kind == "GPU"
