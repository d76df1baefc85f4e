"""oneDNN's kernel, on CPUs where TensorFlow leaves oneDNN off."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.compat import onednn
from tfaccel.core.plan import Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._geometry import rows, sizes
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import CONVOLUTIONS, CallSpec, Direction

# By op: oneDNN's operation forward, for the input's gradient and for the weights'.
_NAMES: dict[str, dict[str, str]] = {
    op: {
        "forward": f"_MklNative{name}",
        "input_gradient": f"_MklNative{name}BackpropInput{version}",
        "weight_gradient": f"_MklNative{name}BackpropFilter{version}",
    }
    for op, name, version in (
        ("conv1d", "Conv2D", ""),
        ("conv2d", "Conv2D", ""),
        ("conv3d", "Conv3D", "V2"),
        ("depthwise_conv2d", "DepthwiseConv2dNative", ""),
    )
}


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.device.kind != "CPU":
        return Unsupported("oneDNN's kernels are for CPUs")
    if spec.dtype == "float64":
        return Unsupported("oneDNN has no float64 on CPUs")
    if spec.groups > 1:
        return Unsupported("it has groups")
    if 0 in (*spec.x, *spec.w):
        return Unsupported(
            "it has nothing to compute, for which oneDNN's results have other shapes"
        )
    if spec.op == "depthwise_conv2d" and (len(set(spec.strides)) > 1 or set(spec.dilation) != {1}):
        return Unsupported("the depthwise operations take neither dilation nor strides that differ")
    cause = onednn.obstacle()
    return Unsupported(cause) if cause else None


def _call(spec: CallSpec, *inputs: Any) -> tf.Tensor:
    window: dict[str, Any] = {"T": tf.float32, "padding": spec.padding.upper()}
    flat = (1,) if spec.op == "conv1d" else ()
    window["strides"] = [1, *flat, *spec.strides, 1]
    window["dilations"] = [1, *flat, *spec.dilation, 1]
    return onednn.call(_NAMES[spec.op][spec.direction], inputs, **window)[0]


def _image(spec: CallSpec, x: tf.Tensor) -> tf.Tensor:
    """A sequence as an image of one row."""
    return tf.expand_dims(x, 1) if spec.op == "conv1d" else x


def _filters(spec: CallSpec, w: tf.Tensor) -> tf.Tensor:
    return w[tf.newaxis] if spec.op == "conv1d" else w


def _forward(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    made = _call(spec, _image(spec, x), _filters(spec, w))
    return made[:, 0] if spec.op == "conv1d" else made


def _input_gradient(spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    one_row = spec.op == "conv1d"
    image = tf.concat([shape[:1], [1], shape[1:]], 0) if one_row else shape
    made = _call(spec, image, _filters(spec, w), _image(spec, dy))
    return made[:, 0] if one_row else made


def _weight_gradient(spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    one_row = spec.op == "conv1d"
    image = tf.concat([[1], shape], 0) if one_row else shape
    made = _call(spec, _image(spec, x), image, _image(spec, dy))
    return made[0] if one_row else made


def _matmul(a: tf.Tensor, b: tf.Tensor, **transposed: bool) -> tf.Tensor:
    """A product of two matrices."""
    return onednn.call("_MklMatMul", (a, b), T=tf.float32, **transposed)[0]


def _batch_matmul(a: tf.Tensor, b: tf.Tensor, **transposed: bool) -> tf.Tensor:
    """A product of batches of matrices."""
    return onednn.call("_MklBatchMatMulV2", (a, b), T=tf.float32, **transposed)[0]


def _product(spec: CallSpec, x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    if len(spec.w) > 2:
        return _batch_matmul(x, w)
    return tf.reshape(_matmul(rows(x), w), [*sizes(x)[:-1], w.shape[-1]])


def _product_input_gradient(
    spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if len(spec.w) > 2:
        return _reference.summed_to(_batch_matmul(dy, w, adj_y=True), shape)
    return tf.reshape(_matmul(rows(dy), w, transpose_b=True), shape)


def _product_weight_gradient(
    spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor
) -> tf.Tensor:
    if len(spec.w) > 2:
        return _reference.summed_to(_batch_matmul(x, dy, adj_x=True), shape)
    return _matmul(rows(x), rows(dy), transpose_a=True)


def _kernel(op: str, direction: Direction, fn: Callable[..., tf.Tensor]) -> Kernel:
    own = _reference.function(op, direction)

    def unless_empty(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
        if None not in (*a.shape, *b.shape):
            return fn(spec, a, b, *shape)
        # An empty batch may come, which is refused above where it is known.
        return tf.cond(
            tf.minimum(tf.size(a), tf.size(b)) > 0,
            lambda: fn(spec, a, b, *shape),
            lambda: own(spec, a, b, *shape),
        )

    return Kernel(
        op=op,
        direction=direction,
        name="onednn",
        # CPUs where TensorFlow leaves it off have no instructions for 16 bits.
        fn=_reference.on(tf.float32, unless_empty),
        unsupported=_refusal,
        summary="oneDNN's kernel in float32, where TensorFlow leaves oneDNN off",
        source="https://uxlfoundation.github.io/oneDNN",
        in_xla=False,
    )


_FUNCTIONS: dict[Direction, Callable[..., tf.Tensor]] = {
    "forward": _forward,
    "input_gradient": _input_gradient,
    "weight_gradient": _weight_gradient,
}
_PRODUCTS: dict[Direction, Callable[..., tf.Tensor]] = {
    "forward": _product,
    "input_gradient": _product_input_gradient,
    "weight_gradient": _product_weight_gradient,
}
KERNELS = tuple(
    _kernel(op, direction, fn)
    for op in (*CONVOLUTIONS, "depthwise_conv2d", "matmul")
    for direction, fn in (_PRODUCTS if op == "matmul" else _FUNCTIONS).items()
)
