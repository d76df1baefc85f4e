"""BatchNormalization as part of the layer before it, for predictions."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported, kind_of
from tfaccel.core.workload import Workload

# The attribute of a tensor that holds the product that made it.
_PRODUCT = "_tfaccel_product"
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
# The weights whose last sizes are the channels of the output. Those of a depthwise
# convolution are its last two.
_WEIGHTS: Mapping[Any, str] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_DEPTHWISE, keras.layers.Dense), "kernel"),
    **dict.fromkeys(_SEPARABLE, "pointwise_kernel"),
}
_PYTHON_TRUTH = (bool, int, np.bool_, type(None))


@dataclasses.dataclass(frozen=True)
class FoldedNorm(LayerPass):
    """Makes BatchNormalization a part of the convolution or Dense layer before it.

    In predictions its statistics are fixed, so it multiplies each channel by a number
    and adds another. Both can be done to the weights and the bias of the layer before,
    which are much smaller than its output: `norm(W x + b) = (s W) x + (s b + t)` with
    `s = gamma / sqrt(variance + epsilon)` and `t = beta - s mean`. Layers are paired while
    the model runs, so any model is served: a layer notes on its result how that was computed,
    and a normalization that is given this very tensor computes it again with scaled weights.
    Where something else reads the first result too, that is computed as well.

    Folded are normalizations behind Conv1D, Conv2D, Conv3D, DepthwiseConv, SeparableConv and
    Dense layers without an activation, the channels last. Others stay.

    >>> plan = tfaccel.Plan([tfaccel.passes.FoldedNorm()])

    Source: Jacob et al., section 3.2, https://arxiv.org/abs/1712.05877
    """

    name: ClassVar[str] = "folded_norm"

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if workload.training:
            return Refusal.TASK("in training the statistics change", "use tfaccel.accelerate")
        if not any(isinstance(x, keras.layers.BatchNormalization) for x in workload.layers):
            return Refusal.NOTHING("the model has no BatchNormalization layer")
        if not any(map(_is_product, workload.layers)):
            return Refusal.NO_USE("the model has no layer that BatchNormalization could be part of")
        return None

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=not workload.training,
            reason="with fixed statistics a normalization is part of the convolution before it",
        )

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """The products and the normalizations, each with why it stays; None where it is folded."""
        return ((x, None) for x in workload.layers if _is_product(x) or _is_norm(x))

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        yield "call", _folding(layer) if _is_norm(layer) else _noting(layer)


@dataclasses.dataclass(frozen=True, eq=False)
class _Product:
    """How a tensor was made: `call(inputs)` of a layer that is a product."""

    layer: Any
    call: Callable[..., Any]
    inputs: Any

    def folded(self, scale: tf.Tensor, shift: tf.Tensor) -> tf.Tensor:
        """The product, with each channel multiplied by `scale`, and `shift` added."""
        weights = getattr(self.layer, _WEIGHTS[kind_of(self.layer, _WEIGHTS)])
        if isinstance(self.layer, _DEPTHWISE):
            per_channel = tf.reshape(scale, weights.shape[-2:])
        else:
            per_channel = scale
        values = [(weights, keras.ops.cast(weights, scale.dtype) * per_channel)]
        if self.layer.bias is not None:
            bias = keras.ops.cast(self.layer.bias, scale.dtype)
            values.append((self.layer.bias, bias * scale + shift))
        # The layer's own code, or that of another pass, reads these and no others.
        with keras.StatelessScope(state_mapping=values):
            outputs = self.call(self.inputs)
        if self.layer.bias is None:
            outputs = tf.nn.bias_add(outputs, tf.cast(shift, outputs.dtype))
        return outputs


def _noting(layer: Any) -> Callable[..., Any]:
    """The `call` of a product that notes on its result how that was computed."""
    own = layer.call

    def call(inputs: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = own(inputs, *args, **kwargs)
        if isinstance(outputs, tf.Tensor) and not args and not any(kwargs.values()):
            setattr(outputs, _PRODUCT, _Product(layer, own, inputs))
        return outputs

    return call


def _folding(layer: Any) -> Callable[..., Any]:
    """The `call` of a BatchNormalization that becomes part of the product before it."""
    own = layer.call

    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        product = getattr(inputs, _PRODUCT, None)
        by_batch = not isinstance(training, _PYTHON_TRUTH) or (training and layer.trainable)
        if product is None or mask is not None or by_batch or not _is_last(layer.axis, inputs):
            return own(inputs, training=training, mask=mask)
        return tf.cast(product.folded(*_scale_and_shift(layer)), layer.compute_dtype)

    return call


def _scale_and_shift(layer: Any) -> tuple[tf.Tensor, tf.Tensor]:
    """What a normalization with fixed statistics multiplies by, and adds."""
    # 16 bits have too few digits for a sum with epsilon.
    dtype = "float64" if layer.compute_dtype == "float64" else "float32"

    def value(variable: Any) -> tf.Tensor:
        return tf.convert_to_tensor(keras.ops.cast(variable, dtype))

    scale = tf.math.rsqrt(value(layer.moving_variance) + layer.epsilon)
    if layer.scale:
        scale *= value(layer.gamma)
    shift = -value(layer.moving_mean) * scale
    return scale, shift + value(layer.beta) if layer.center else shift


def _is_last(axis: int, inputs: tf.Tensor) -> bool:
    rank = inputs.shape.rank
    return rank is not None and rank >= 2 and axis in (-1, rank - 1)


def _is_product(layer: Any) -> bool:
    """Whether the layer is linear in weights that can be scaled."""
    kind = kind_of(layer, _WEIGHTS)
    return (
        kind is not None
        and layer.built
        and _is_plain(layer, kind)
        and layer.activation in (None, keras.activations.linear)
        and getattr(layer, "data_format", "channels_last") == "channels_last"
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
    )


def _is_norm(layer: Any) -> bool:
    return _is_plain(layer, keras.layers.BatchNormalization)


def _is_plain(layer: Any, kind: Any) -> bool:
    """Whether a layer runs Keras's own `call`, or what another pass has put there."""
    own = keras_private.overridden(layer, kind, "call", by_user=True)
    return isinstance(layer, kind) and own is None
