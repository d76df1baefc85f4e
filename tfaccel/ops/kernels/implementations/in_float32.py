"""16-bit operands multiplied in float32, where a library has no fast 16-bit kernel."""

import tensorflow as tf

from tfaccel.core.plan import Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import DIRECTIONS, OPS, CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.dtype in ("bfloat16", "float16"):
        return None
    return Unsupported(f"it computes in {spec.dtype} already")


KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="in_float32",
        fn=_reference.on(tf.float32, _reference.function(op, direction)),
        unsupported=_refusal,
        summary="TensorFlow's op on operands converted to float32",
        source="https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html",
    )
    for op in OPS
    for direction in DIRECTIONS
)
