"""TensorFlow's op, compiled by XLA: on a CPU these are other kernels, on a GPU fused ones."""

from tfaccel.kernels import _native
from tfaccel.kernels._kernel import Kernel
from tfaccel.kernels._spec import CONVOLUTIONS, DIRECTIONS, CallSpec
from tfaccel.plan import Refusal


def _refusal(spec: CallSpec) -> Refusal | None:
    return Refusal("a grouped convolution is compiled by XLA already") if spec.groups > 1 else None


KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="xla",
        fn=_native.function(op, direction),
        refusal=_refusal,
        summary="TensorFlow's op, compiled by XLA by itself",
        source="https://openxla.org/xla/tf2xla/tutorials/jit_compile",
        jit_compile=True,
    )
    for op in (*CONVOLUTIONS, "matmul")
    for direction in DIRECTIONS
)
