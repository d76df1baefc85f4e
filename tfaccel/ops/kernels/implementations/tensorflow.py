"""TensorFlow's own op, which the others must beat, and the same op by XLA or in another dtype."""

import tensorflow as tf

from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import TOLERANCES, kernels_of
from tfaccel.ops.kernels._spec import CONVOLUTIONS, DIRECTIONS, OPS, CallSpec

_WITHOUT_DEPTHWISE = (*CONVOLUTIONS, "matmul")


def _not_by_xla(spec: CallSpec) -> Unsupported | None:
    if spec.groups > 1:
        return Refusal.NO_USE("a grouped convolution is compiled by XLA already")
    return None


def _not_in_float32(spec: CallSpec) -> Unsupported | None:
    if spec.dtype in ("bfloat16", "float16"):
        return None
    return Refusal.NO_USE(f"it computes in {spec.dtype} already")


def _not_in_bfloat16(spec: CallSpec) -> Unsupported | None:
    if spec.dtype != "float32":
        return Refusal.DTYPE(f"it is for float32, not {spec.dtype}")
    if spec.device.fast_dtype != "bfloat16":
        return Refusal.DEVICE(f"{spec.device.name} has no fast bfloat16 products")
    if spec.direction == "weight_gradient" and _strides_over_all(spec):
        # TensorFlow 2.21 leaves window offsets that meet no input uninitialised, in bfloat16 alone.
        return Refusal.WRONG("oneDNN's bfloat16 gradient is wrong where a stride exceeds the image")
    return None


def _strides_over_all(spec: CallSpec) -> bool:
    sizes = zip(spec.strides, spec.x[1:-1], strict=False)
    return any(size is not None and step > size for step, size in sizes)


KERNELS = kernels_of(
    dict.fromkeys(DIRECTIONS, _reference.call),
    OPS,
    name="tensorflow",
    summary="TensorFlow's op, as Keras's layer calls it",
    source="https://www.tensorflow.org/api_docs/python/tf/nn",
)
# On a CPU these are other kernels, on a GPU fused ones.
BY_XLA = kernels_of(
    dict.fromkeys(DIRECTIONS, _reference.call),
    _WITHOUT_DEPTHWISE,
    name="xla",
    unsupported=_not_by_xla,
    summary="TensorFlow's op, compiled by XLA by itself",
    source="https://openxla.org/xla/tf2xla/tutorials/jit_compile",
    jit_compile=True,
)
# Where a library has no fast 16-bit kernel.
IN_FLOAT32 = kernels_of(
    dict.fromkeys(DIRECTIONS, _reference.on(tf.float32, _reference.call)),
    OPS,
    name="in_float32",
    unsupported=_not_in_float32,
    summary="TensorFlow's op on operands converted to float32",
    source="https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html",
)
IN_BFLOAT16 = kernels_of(
    dict.fromkeys(DIRECTIONS, _reference.on(tf.bfloat16, _reference.call)),
    _WITHOUT_DEPTHWISE,
    name="in_bfloat16",
    unsupported=_not_in_bfloat16,
    summary="TensorFlow's op on operands rounded to bfloat16, sums in float32",
    source="Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, "
    "https://arxiv.org/abs/1905.12322",
    tolerance=dict.fromkeys(TOLERANCES, TOLERANCES["bfloat16"]),
    reduces=True,
)
