"""Activations of several elementwise ops as one loop forward and one back."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import FLOAT32_OR_LESS, Refusal, Unsupported, named, other_dtype
from tfaccel.core.workload import Workload
from tfaccel.ops.activations import GELU, SILU, formula_of

# A loop calls its cells at every time step, on small tensors.
_LOOPS = (keras.layers.RNN, keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)


@dataclasses.dataclass(frozen=True)
class FusedActivation(LayerPass):
    """Computes GELU and SiLU, and their gradients, by one loop each.

    TensorFlow makes about five ops of each of them and ten of its gradient, and every one
    reads and writes a whole tensor. Here XLA compiles the formula and its derivative, and
    nothing else of the step; only the activation's input is kept. Layers with
    `activation="gelu"`, `"silu"` or `"swish"` are served, and `keras.layers.Activation`.

    XLA compiles once for every size that it meets. Where more than the batch is unknown
    while tracing, where batches come in many sizes, and under several replicas, TensorFlow's
    ops compute the same formulas.

    Source: Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415; Elfwing et al.,
    https://arxiv.org/abs/1702.03118; https://openxla.org/xla/tf2xla/tutorials/jit_compile
    """

    name: ClassVar[str] = "fused_activation"
    no_layer: ClassVar[str] = "the model has no layer with the activation gelu or silu"

    def unsupported_step(self, workload: Workload) -> Unsupported | None:
        if workload.model.jit_compile:
            return Refusal.NO_USE("the model uses XLA, which fuses activations already")
        return None

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """Every layer with such an activation, with why it keeps it; None where it is replaced."""
        for layer in workload.layers:
            if _formula_of(layer) is not None:
                yield layer, _obstacle(layer)

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            gain=1.08,
            reason="TensorFlow makes GELU and SiLU of about five ops, and of ten in the gradient",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        return LayerNote(runs.extended("its activation one loop"))

    def compiles_sizes(self, workload: Workload) -> bool:
        return workload.num_replicas == 1 and not workload.sizes_vary

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        jit_compile = self.compiles_sizes(context.workload)
        own, formula = layer.activation, _formula_of(layer)

        def activation(x: Any) -> Any:
            if not isinstance(x, tf.Tensor) or x.dtype.name not in FLOAT32_OR_LESS:
                return own(x)
            return formula(x, jit_compile)

        yield "activation", activation


def _formula_of(layer: Any) -> Any:
    """The formula of a layer's activation; None where TensorFlow has one op for it."""
    formula = formula_of(getattr(layer, "activation", None))
    return formula if formula in (GELU, SILU) else None


def _obstacle(layer: Any) -> Unsupported | None:
    if isinstance(layer, _LOOPS):
        return Unsupported(f"{named(layer)} runs its activation in a loop")
    if not keras_private.is_from_keras(layer):
        return Refusal.OWN_CODE(
            f"{named(layer)} may use its activation in other ways than by calling it"
        )
    return other_dtype(layer)
