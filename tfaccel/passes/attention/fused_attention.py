"""Attention layers by few, large products and a gradient written by hand."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Unsupported
from tfaccel.core.workload import Workload
from tfaccel.passes.attention import _layers


@dataclasses.dataclass(frozen=True)
class FusedAttention(LayerPass):
    """Runs MultiHeadAttention and GroupQueryAttention by few products of matrices.

    Keras projects query, key and value each by an einsum of its own, computes scores and
    results by einsums that turn their operands, and leaves the gradients to TensorFlow. Here
    all that is projected from one tensor is one product with joined weights, the scale is
    part of the weights, and attention has an exact gradient written by hand
    (`tfaccel.ops.attention`). It keeps the probabilities once; for long sequences it keeps
    none, and computes them again by blocks of queries.

    With the pass `kernels` in the plan, the products are computed by the kernels that were
    the fastest for their shapes.

    Masks, causal masks, padding masks, sliding windows, gates and dropout (the same
    draws) are Keras's. A call that wants the attention scores, inputs of more
    than one attention axis, float64, and layers with maths of their own keep Keras's
    code. In 16 bits the softmax is computed in float32, also where a layer has dropout and
    Keras computes it in 16 bits.

    Source: Vaswani et al., https://arxiv.org/abs/1706.03762; Dao et al., FlashAttention,
    https://arxiv.org/abs/2205.14135
    """

    name: ClassVar[str] = "fused_attention"
    no_layer: ClassVar[str] = "the model has no MultiHeadAttention or GroupQueryAttention layer"
    kinds: ClassVar[tuple[type, ...]] = _layers.KINDS

    def obstacle(self, layer: Any, workload: Workload) -> Unsupported | None:
        return _layers.obstacle(layer)

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=workload.has(*_layers.KINDS),
            gain=1.15,
            reason="Keras 3 projects query, key and value apart, by einsums, and keeps all that a "
            "softmax's gradient needs; here it is few products, and one matrix is kept",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        return LayerNote(runs.extended("a shorter gradient"))

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        yield "call", _layers.fused_call(layer, lambda: context.chooser)
