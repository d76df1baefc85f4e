"""16-bit operands multiplied in float32, where a library has no fast 16-bit kernel."""

import tensorflow as tf

from tfaccel.kernels import _native
from tfaccel.kernels._kernel import Kernel
from tfaccel.kernels._spec import DIRECTIONS, OPS, CallSpec
from tfaccel.plan import Refusal


def _refusal(spec: CallSpec) -> Refusal | None:
    if spec.dtype in ("bfloat16", "float16"):
        return None
    return Refusal(f"it computes in {spec.dtype} already")


KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="in_float32",
        fn=_native.on(tf.float32, _native.function(op, direction)),
        refusal=_refusal,
        summary="TensorFlow's op on operands converted to float32",
        source="https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html",
    )
    for op in OPS
    for direction in DIRECTIONS
)
