"""float32 operands rounded to bfloat16, multiplied with sums in float32."""

import tensorflow as tf

from tfaccel.core.plan import Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import TOLERANCES, Kernel
from tfaccel.ops.kernels._spec import CONVOLUTIONS, DIRECTIONS, CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.dtype != "float32":
        return Unsupported(f"it is for float32, not {spec.dtype}")
    if spec.device.fast_dtype != "bfloat16":
        return Unsupported(f"{spec.device.name} has no fast bfloat16 products")
    return None


KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="in_bfloat16",
        fn=_reference.on(tf.bfloat16, _reference.function(op, direction)),
        unsupported=_refusal,
        summary="TensorFlow's op on operands rounded to bfloat16, sums in float32",
        source="Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, "
        "https://arxiv.org/abs/1905.12322",
        tolerance=dict.fromkeys(TOLERANCES, TOLERANCES["bfloat16"]),
        reduces=True,
    )
    for op in (*CONVOLUTIONS, "matmul")
    for direction in DIRECTIONS
)
