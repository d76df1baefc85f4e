"""Layers that are products, in the terms of `tfaccel.ops`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.core.unsupported import Unsupported, kind_of, named, other_dtype, own_method
from tfaccel.ops.api import convolve
from tfaccel.ops.kernels import (
    DTYPES,
    CallSpec,
    Choose,
    Chooser,
    convolution_spec,
    matmul_spec,
    product,
)

_CONVOLUTIONS: Mapping[type, str] = {
    keras.layers.Conv1D: "conv1d",
    keras.layers.Conv2D: "conv2d",
    keras.layers.Conv3D: "conv3d",
    keras.layers.DepthwiseConv2D: "depthwise_conv2d",
}
KINDS = (*_CONVOLUTIONS, keras.layers.SeparableConv2D, keras.layers.Dense)


def obstacle(layer: Any) -> Unsupported | None:
    """Why this layer, which is a product, keeps Keras's own `call`."""
    kind = kind_of(layer, KINDS) or type(layer)
    methods = ("call", "convolution_op") if hasattr(kind, "convolution_op") else ("call",)
    if getattr(layer, "quantization_mode", None):
        return Unsupported(f"{named(layer)} is quantized to {layer.quantization_mode}")
    return own_method(layer, kind, *methods) or other_dtype(layer, DTYPES, "use float32")


def calls(layer: Any, shape: Sequence[int | None], dtype: str) -> list[CallSpec]:
    """The products that a built layer without an obstacle is made of, for the shape of its input.

    Raises:
        TypeError, ValueError: the layer can't be called with such an input.

    >>> layer = keras.layers.SeparableConv2D(5, 3, padding="same")
    >>> layer.build((None, 8, 8, 4))
    >>> print(*calls(layer, (None, 8, 8, 4), "float32"), sep="; ")
    depthwise_conv2d ?x8x8x4 * 3x3x4x1, same, float32; conv2d ?x8x8x4 * 1x1x4x5, valid, float32
    """
    kind = kind_of(layer, KINDS)
    if kind is keras.layers.Dense:
        return [matmul_spec(shape, layer.kernel.shape, dtype)]
    if layer.data_format == "channels_first":
        shape = (shape[0], *shape[2:], shape[1])
    window = {"strides": layer.strides, "dilation_rate": layer.dilation_rate}
    padding = layer.padding
    if padding == "causal":
        size = shape[1]
        before = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
        shape, padding = (shape[0], None if size is None else size + before, shape[2]), "valid"
    if kind is keras.layers.SeparableConv2D:
        deep = layer.depthwise_kernel.shape
        first = convolution_spec("depthwise_conv2d", shape, deep, dtype, padding=padding, **window)
        return [first, convolution_spec("conv2d", first.y, layer.pointwise_kernel.shape, dtype)]
    op, filters = _CONVOLUTIONS[kind or type(layer)], layer.kernel.shape
    groups = layer.groups if op != "depthwise_conv2d" else 1
    return [convolution_spec(op, shape, filters, dtype, padding=padding, groups=groups, **window)]


def kernel_call(layer: Any, chooser: Chooser) -> Callable[..., Any]:
    """The `call` of a layer without an obstacle, by kernels that are chosen while it is traced."""
    own_call = layer.call

    def call(inputs: Any, **arguments: Any) -> Any:
        if not _serves(inputs) or not chooser.wanted(
            layer.name, calls(layer, inputs.shape, inputs.dtype.name)
        ):
            return own_call(inputs, **arguments)
        y = _computed(layer, inputs, chooser.choose)
        return y if layer.activation is None else layer.activation(y)

    return call


def _serves(inputs: Any) -> bool:
    return (
        isinstance(inputs, tf.Tensor)
        and inputs.dtype.name in DTYPES
        and inputs.shape.rank is not None
        and inputs.shape.rank >= 2
    )


def _computed(layer: Any, x: tf.Tensor, choose: Choose) -> tf.Tensor:
    """What the layer computes, less its activation."""

    def weights(variable: Any) -> tf.Tensor:
        return tf.cast(tf.convert_to_tensor(keras.ops.convert_to_tensor(variable)), x.dtype)

    bias = None if layer.bias is None else weights(layer.bias)
    kind = kind_of(layer, KINDS)
    if kind is keras.layers.Dense:
        w = weights(layer.kernel)
        y = product(matmul_spec(x.shape, w.shape, x.dtype.name), x, w, choose)
        return y if bias is None else y + bias
    window = (layer.strides, layer.padding, layer.dilation_rate)
    where = layer.data_format
    if kind is keras.layers.SeparableConv2D:
        deep, flat = weights(layer.depthwise_kernel), weights(layer.pointwise_kernel)
        y = convolve("depthwise_conv2d", x, deep, *window, where=where, choose=choose)
        return convolve("conv2d", y, flat, 1, "valid", 1, where=where, bias=bias, choose=choose)
    op = _CONVOLUTIONS[kind or type(layer)]
    groups = layer.groups if op != "depthwise_conv2d" else 1
    return convolve(
        op, x, weights(layer.kernel), *window, groups, where=where, bias=bias, choose=choose
    )
