"""Attention layers by few, large products and a gradient written by hand."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import keras

from tfaccel.compat.patching import instance_attribute
from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.plan import Pass, Unsupported
from tfaccel.core.prior import Prior
from tfaccel.core.workload import Workload
from tfaccel.passes.attention import _layers


@dataclasses.dataclass(frozen=True)
class FusedAttention(Pass):
    """Runs MultiHeadAttention and GroupQueryAttention by few products of matrices.

    Keras projects query, key and value each by an einsum of its own, computes scores and
    results by einsums that turn their operands, and leaves the gradients to TensorFlow. Here
    what is projected from one tensor is one product with the joined weights, the scale is
    part of the weights, and attention has an exact gradient written by hand
    (`tfaccel.ops.attention`), which keeps the probabilities once, or for long sequences not at
    all: then they are made by blocks of queries, again in the gradient.

    With the pass `kernels` in the plan, the products are computed by the kernels that were
    the fastest for their shapes.

    Masks, causal masks, padding masks, sliding windows, gates and dropout (the same
    draws) are Keras's. A call that wants the attention scores, inputs of more
    than one attention axis, float64, and layers with maths of their own keep Keras's
    code. In 16 bits the softmax is computed in float32 also where a layer has dropout, for
    which Keras computes it in 16 bits.

    Source: Vaswani et al., https://arxiv.org/abs/1706.03762; Dao et al., FlashAttention,
    https://arxiv.org/abs/2205.14135
    """

    name: ClassVar[str] = "fused_attention"

    def unsupported(self, workload: Workload) -> Unsupported | None:
        obstacles = [obstacle for _, obstacle in self.layers(workload)]
        if not obstacles:
            return Unsupported("the model has no MultiHeadAttention or GroupQueryAttention layer")
        return obstacles[0] if all(obstacles) else None

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """Every attention layer, with what keeps its own `call`; None where it is replaced."""
        for layer in workload.layers:
            if _layers.kind_of(layer) is not None:
                yield layer, _layers.obstacle(layer)

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=workload.has(*_layers.KINDS),
            reason="Keras 3 projects query, key and value apart, by einsums, and keeps all that a "
            "softmax's gradient needs; here it is few products, and one matrix is kept",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        return LayerNote(runs.extended("a shorter gradient"))

    @contextlib.contextmanager
    def applied(self, workload: Workload) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layer, obstacle in self.layers(workload):
                if obstacle is None:
                    call = _layers.fused_call(layer, lambda: workload.chooser)
                    stack.enter_context(instance_attribute(layer, "call", call))
            yield
