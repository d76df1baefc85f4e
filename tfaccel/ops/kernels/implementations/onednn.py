"""oneDNN's kernel, on CPUs where TensorFlow leaves oneDNN off."""

import tensorflow as tf

from tfaccel.compat import onednn
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._spec import DIRECTIONS, OPS, CallSpec

# By op: oneDNN's operation forward, for the input's gradient and for the weights'.
_NAMES: dict[str, dict[str, str]] = {
    op: {
        "forward": f"_MklNative{name}",
        "input_gradient": f"_MklNative{name}BackpropInput{version}",
        "weight_gradient": f"_MklNative{name}BackpropFilter{version}",
    }
    for op, name, version in (
        ("conv2d", "Conv2D", ""),
        ("conv3d", "Conv3D", "V2"),
        ("depthwise_conv2d", "DepthwiseConv2dNative", ""),
    )
}


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.device.kind != "CPU":
        return Refusal.DEVICE("oneDNN's kernels are for CPUs")
    if spec.dtype == "float64":
        return Refusal.DTYPE("oneDNN has no float64 on CPUs")
    if spec.groups > 1:
        return Refusal.SHAPE("it has groups")
    if 0 in (*spec.x, *spec.w):
        return Refusal.SIZES(
            "it has nothing to compute, for which oneDNN's results have other shapes"
        )
    if spec.op == "depthwise_conv2d" and (len(set(spec.strides)) > 1 or set(spec.dilation) != {1}):
        return Refusal.SHAPE("depthwise operations take neither dilation nor strides that differ")
    cause = onednn.obstacle()
    return Refusal.DEVICE(cause) if cause else None


@_reference.as_images
def _convolution(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
    """Any direction; the operations take their operands in the order that TensorFlow's do."""
    inputs = {
        "forward": (a, b),
        "input_gradient": (*shape, b, a),
        "weight_gradient": (a, *shape, b),
    }[spec.direction]
    return onednn.call(
        _NAMES[spec.op][spec.direction],
        inputs,
        T=tf.float32,
        padding=spec.padding.upper(),
        strides=[1, *spec.strides, 1],
        dilations=[1, *spec.dilation, 1],
    )


def _matmul(
    a: tf.Tensor, b: tf.Tensor, transpose_a: bool = False, transpose_b: bool = False
) -> tf.Tensor:
    if a.shape.rank == b.shape.rank == 2:
        turned = {"transpose_a": transpose_a, "transpose_b": transpose_b}
        return onednn.call("_MklMatMul", (a, b), T=tf.float32, **turned)
    turned = {"adj_x": transpose_a, "adj_y": transpose_b}
    return onednn.call("_MklBatchMatMulV2", (a, b), T=tf.float32, **turned)


_product = _reference.products_by(_matmul)


def _unless_empty(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
    fn = _product if spec.op == "matmul" else _convolution
    if None not in (*a.shape, *b.shape):
        return fn(spec, a, b, *shape)
    # An empty batch may come, which is refused above where it is known.
    return tf.cond(
        tf.minimum(tf.size(a), tf.size(b)) > 0,
        lambda: fn(spec, a, b, *shape),
        lambda: _reference.call(spec, a, b, *shape),
    )


KERNELS = kernels_of(
    # CPUs where TensorFlow leaves it off have no instructions for 16 bits.
    dict.fromkeys(DIRECTIONS, _reference.on(tf.float32, _unless_empty)),
    OPS,
    name="onednn",
    unsupported=_refusal,
    summary="oneDNN's kernel in float32, where TensorFlow leaves oneDNN off",
    source="https://uxlfoundation.github.io/oneDNN",
    in_xla=False,
)
