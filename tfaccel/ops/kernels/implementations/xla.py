"""TensorFlow's op, compiled by XLA: on a CPU these are other kernels, on a GPU fused ones."""

from tfaccel.core.plan import Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import CONVOLUTIONS, DIRECTIONS, CallSpec


def _refusal(spec: CallSpec) -> Unsupported | None:
    return (
        Unsupported("a grouped convolution is compiled by XLA already") if spec.groups > 1 else None
    )


KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="xla",
        fn=_reference.function(op, direction),
        unsupported=_refusal,
        summary="TensorFlow's op, compiled by XLA by itself",
        source="https://openxla.org/xla/tf2xla/tutorials/jit_compile",
        jit_compile=True,
    )
    for op in (*CONVOLUTIONS, "matmul")
    for direction in DIRECTIONS
)
