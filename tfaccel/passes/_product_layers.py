"""Layers that are products, in the terms of `tfaccel.ops`."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfaccel import keras_private, ops
from tfaccel.kernels import DTYPES, CallSpec, Choose, matmul_spec, product
from tfaccel.plan import Refusal

# Says whether a call is to be computed by tfaccel's kernels at all, by the layer's name.
Wanted = Callable[[str, CallSpec], bool]
# Takes the inputs (as a tensor), says whether kernels are wanted, and how to choose them.
Compute = Callable[[Any, tf.Tensor, Wanted, Choose], tf.Tensor | None]

_CONVOLUTIONS: Mapping[type, str] = {
    keras.layers.Conv1D: "conv1d",
    keras.layers.Conv2D: "conv2d",
    keras.layers.Conv3D: "conv3d",
    keras.layers.DepthwiseConv2D: "depthwise_conv2d",
}
KINDS = (*_CONVOLUTIONS, keras.layers.SeparableConv2D, keras.layers.Dense)


def kind_of(layer: Any) -> type | None:
    """The class of Keras's own that the layer is or derives from; None if it is no product."""
    return next((kind for kind in KINDS if isinstance(layer, kind)), None)


def obstacle(layer: Any) -> Refusal | None:
    """Why this layer keeps Keras's own `call`."""
    who = f"layer {layer.name!r} ({type(layer).__name__})"
    kind = kind_of(layer)
    assert kind is not None
    methods = ("call", "convolution_op") if hasattr(kind, "convolution_op") else ("call",)
    own = keras_private.overridden(layer, kind, *methods)
    if own is not None:
        return Refusal(f"{who} has a `{own}` of its own")
    if getattr(layer, "quantization_mode", None):
        return Refusal(f"{who} is quantized to {layer.quantization_mode}")
    if str(layer.compute_dtype) not in DTYPES:
        return Refusal(f"{who} computes in {layer.compute_dtype}", "use float32")
    return None


def kernel_call(layer: Any, is_off: Callable[[], bool], wanted: Wanted, choose: Choose) -> Any:
    """The layer's `call`, by kernels that are chosen while it is traced.

    Args:
        layer: a layer that has no obstacle.
        is_off: whether Keras's own code is to run whatever was chosen.
        wanted: whether any direction of a call has a kernel that is not TensorFlow's.
        choose: which kernel computes what.
    """
    own_call = layer.call
    compute = _compute_of(layer)

    def call(inputs: Any, **arguments: Any) -> Any:
        if is_off() or not isinstance(inputs, tf.Tensor) or inputs.dtype.name not in DTYPES:
            return own_call(inputs, **arguments)
        y = compute(layer, inputs, wanted, choose)
        if y is None:
            return own_call(inputs, **arguments)
        return y if layer.activation is None else layer.activation(y)

    return call


def calls_of(layer: Any, dtype: str) -> Iterator[CallSpec]:
    """The calls that a layer makes, as far as its own shapes tell: the batch is unknown.

    Args:
        layer: built.
        dtype: what it computes in.
    """
    try:
        shape = layer.input.shape
    except (AttributeError, ValueError, RuntimeError):  # not called on symbols, or many times
        return
    seen: list[CallSpec] = []

    def note(name: str, spec: CallSpec) -> bool:
        seen.append(spec)
        return False

    @tf.function(autograph=False)
    def look(x: tf.Tensor) -> None:
        _compute_of(layer)(layer, x, note, ops.measured)

    look.get_concrete_function(tf.TensorSpec(shape, str(layer.compute_dtype)))
    yield from (dataclasses.replace(spec, dtype=dtype) for spec in seen)


def _compute_of(layer: Any) -> Compute:
    kind = kind_of(layer)
    if kind is keras.layers.Dense:
        return _dense
    return _separable if kind is keras.layers.SeparableConv2D else _convolution


def _tensor(variable: Any, dtype: Any) -> tf.Tensor:
    return tf.cast(tf.convert_to_tensor(keras.ops.convert_to_tensor(variable)), dtype)


def _dense(layer: Any, x: tf.Tensor, wanted: Wanted, choose: Choose) -> tf.Tensor | None:
    if x.shape.rank is None or x.shape.rank < 2:
        return None
    w = _tensor(layer.kernel, x.dtype)
    spec = matmul_spec(x.shape, w.shape, x.dtype.name)
    if not wanted(layer.name, spec):
        return None
    return _biased(layer, product(spec, x, w, choose))


def _convolution(layer: Any, x: tf.Tensor, wanted: Wanted, choose: Choose) -> tf.Tensor | None:
    op = _CONVOLUTIONS[kind_of(layer) or type(layer)]
    filters = _tensor(layer.kernel, x.dtype)
    groups = getattr(layer, "groups", 1) if op.startswith("conv") else 1
    arguments = (layer.strides, layer.padding, layer.dilation_rate, groups, layer.data_format)
    spec, _, _ = ops.lowered(op, x, filters, *arguments)
    if not wanted(layer.name, spec):
        return None
    bias = _tensor(layer.bias, x.dtype) if layer.use_bias else None
    return ops.convolve(op, x, filters, *arguments, bias, None, choose)


def _separable(layer: Any, x: tf.Tensor, wanted: Wanted, choose: Choose) -> tf.Tensor | None:
    deep, flat = (_tensor(w, x.dtype) for w in (layer.depthwise_kernel, layer.pointwise_kernel))
    first = (layer.strides, layer.padding, layer.dilation_rate, 1, layer.data_format)
    then = (1, "valid", 1, 1, layer.data_format)
    spec, _, _ = ops.lowered("depthwise_conv2d", x, deep, *first)
    pointwise = dataclasses.replace(
        spec,
        op="conv2d",
        x=spec.y,
        w=tuple(flat.shape),
        strides=(1, 1),
        dilation=(1, 1),
        padding="valid",
    )
    if not any([wanted(layer.name, spec), wanted(layer.name, pointwise)]):
        return None
    bias = _tensor(layer.bias, x.dtype) if layer.use_bias else None
    y = ops.convolve("depthwise_conv2d", x, deep, *first, choose=choose)
    return ops.convolve("conv2d", y, flat, *then, bias, None, choose)


def _biased(layer: Any, y: tf.Tensor) -> tf.Tensor:
    return y if layer.bias is None else y + _tensor(layer.bias, y.dtype)
