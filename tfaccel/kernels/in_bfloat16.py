"""float32 operands rounded to bfloat16, multiplied with sums in float32."""

import tensorflow as tf

from tfaccel.kernels import _native
from tfaccel.kernels._kernel import TOLERANCES, Kernel
from tfaccel.kernels._spec import CONVOLUTIONS, DIRECTIONS, CallSpec
from tfaccel.plan import Refusal


def _refusal(spec: CallSpec) -> Refusal | None:
    if spec.dtype != "float32":
        return Refusal(f"it is for float32, not {spec.dtype}")
    if spec.device.fast_dtype != "bfloat16":
        return Refusal(f"{spec.device.name} has no fast bfloat16 products")
    return None


KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="in_bfloat16",
        fn=_native.on(tf.bfloat16, _native.function(op, direction)),
        refusal=_refusal,
        summary="TensorFlow's op on operands rounded to bfloat16, sums in float32",
        source="Kalamkar et al., A Study of BFLOAT16 for Deep Learning Training, "
        "https://arxiv.org/abs/1905.12322",
        tolerance=dict.fromkeys(TOLERANCES, TOLERANCES["bfloat16"]),
        reduces=True,
    )
    for op in (*CONVOLUTIONS, "matmul")
    for direction in DIRECTIONS
)
