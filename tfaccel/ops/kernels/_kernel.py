"""A kernel: one way to compute one direction of one product."""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.core.compiled_sizes import note
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels._spec import CONVOLUTIONS, CallSpec

# The norm of the error over the norm of the result, against TensorFlow's op on the same
# numbers in float32 (float64 for float64). Both operands are exact in the dtype, so what
# differs is the rounding of the result, u = 2^-9 for bfloat16 and 2^-12 for float16 in the
# mean, and that of the sums: sqrt(n) u at worst where a library sums in the dtype itself.
# For float32, 1e-5 is sqrt(n) u for sums of 30,000 terms.
TOLERANCES: Mapping[str, float] = {
    "float64": 1e-12,
    "float32": 1e-5,
    "float16": 5e-3,
    "bfloat16": 3e-2,
}


def serves_all(spec: CallSpec) -> Unsupported | None:
    """Refuses nothing: the default of a kernel that serves every call."""
    return None


@dataclasses.dataclass(frozen=True, eq=False)
class Kernel:
    """One way to compute one direction of one product."""

    op: str  # the product, one of `tfaccel.ops.OPS`
    direction: str  # `"forward"`, `"input_gradient"` or `"weight_gradient"`
    name: str  # unique among the kernels of its op and direction
    # `fn(spec, x, w)` for the forward direction, `fn(spec, dy, w, shape)` for the input gradient
    # and `fn(spec, x, dy, shape)` for the weight gradient, where `shape` is the result's, an int32
    # vector. Any size but the weights' may be unknown while it is traced.
    fn: Callable[..., Any]
    summary: str = ""  # what it computes, in one clause
    source: str = ""  # where the method comes from
    # Why it can't serve a call, and a remedy; None where it can.
    unsupported: Callable[[CallSpec], Unsupported | None] = serves_all
    # The largest relative error, by dtype.
    tolerance: Mapping[str, float] = dataclasses.field(default_factory=lambda: TOLERANCES)
    jit_compile: bool = False  # whether XLA compiles it
    # Whether it multiplies in fewer bits than the operands have. Such a kernel is used only where
    # the caller says that it may be.
    reduces: bool = False
    # Whether it can be part of what XLA compiles. The ops of `tfaccel.ops` use only kernels that
    # can, as they are not told what they become part of.
    in_xla: bool = True
    # Whether it is a call of Python, which no SavedModel can hold.
    in_python: bool = False
    # Why it is not tried for a call that it can serve, unless it is asked for by its name.
    unasked: Callable[[CallSpec], Unsupported | None] = serves_all

    def left_out(self, spec: CallSpec, families: Collection[str] | None) -> Unsupported | None:
        """Why the kernel is not tried for a call that it can serve; None where it is tried.

        `families` are the names that are asked for; None where what uses it may be saved.
        """
        if families is None:
            return Refusal.TASK("no SavedModel can hold it") if self.in_python else None
        return None if self.name in families else self.unasked(spec)

    def function(self, spec: CallSpec) -> Callable[..., tf.Tensor]:
        """The kernel for one call, as a `tf.function` of tensors."""
        return tf.function(
            functools.partial(self.fn, spec),
            jit_compile=True if self.jit_compile else None,
            autograph=False,
        )

    def __call__(self, spec: CallSpec, *tensors: tf.Tensor) -> tf.Tensor:
        """Computes the product, as a function of its own or as part of one being traced.

        It has no gradient itself: `tfaccel.ops.kernels.product` gives it one.
        """
        if tf.executing_eagerly():
            # A tape would have the function make a gradient, which not every op has.
            tensors = tuple(tf.stop_gradient(tensor) for tensor in tensors)
        if self.jit_compile:
            note(tensors[0])
        if tf.executing_eagerly() or self.jit_compile:
            result = _function(self, spec)(*tensors)
        else:
            result = self.fn(spec, *tensors)
        result.set_shape(spec.result)
        return result


def kernels_of(
    functions: Mapping[str, Callable[..., tf.Tensor]],
    ops: Sequence[str] = CONVOLUTIONS,
    **shared: Any,
) -> tuple[Kernel, ...]:
    """A record for each op and each direction in `functions`; `shared` is what all of them have."""
    pairs = [(op, direction) for op in ops for direction in functions]
    return tuple(Kernel(op, way, fn=functions[way], **shared) for op, way in pairs)


@functools.lru_cache(maxsize=1024)
def _function(kernel: Kernel, spec: CallSpec) -> Callable[..., tf.Tensor]:
    return kernel.function(spec)
