"""TensorFlow's own op: the kernel that is always there, and that the others must beat."""

from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import DIRECTIONS, OPS

KERNELS = tuple(
    Kernel(
        op=op,
        direction=direction,
        name="tensorflow",
        fn=_reference.function(op, direction),
        summary="TensorFlow's op, as Keras's layer calls it",
        source="https://www.tensorflow.org/api_docs/python/tf/nn",
    )
    for op in OPS
    for direction in DIRECTIONS
)
