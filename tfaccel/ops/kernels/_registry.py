"""Which kernels there are: the table, and those that a user registered."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from tfaccel.core.unsupported import Unsupported
from tfaccel.ops.kernels._kernel import TOLERANCES, Kernel, serves_all
from tfaccel.ops.kernels._spec import DIRECTIONS, OPS, CallSpec
from tfaccel.ops.kernels.implementations import (
    exchanged,
    flipped,
    fused_offsets,
    im2col,
    matmul_1x1,
    onednn,
    opencl,
    shifted,
    split_groups,
    tensorflow,
    transposed,
)
from tfaccel.system.arguments import one_of

# TensorFlow's own first: it is what the others are measured against.
KERNELS: tuple[Kernel, ...] = (
    *tensorflow.KERNELS,
    *matmul_1x1.KERNELS,
    *im2col.KERNELS,
    *shifted.KERNELS,
    *flipped.KERNELS,
    *split_groups.KERNELS,
    *fused_offsets.KERNELS,
    *transposed.KERNELS,
    *exchanged.KERNELS,
    *onednn.KERNELS,
    *tensorflow.BY_XLA,
    *tensorflow.IN_FLOAT32,
    *tensorflow.IN_BFLOAT16,
    *opencl.KERNELS,
)
REFERENCE = "tensorflow"
# Kernels that may have to be asked for by name.
FAMILIES = tuple(dict.fromkeys(kernel.name for kernel in KERNELS if kernel.in_python))
_registered: list[Kernel] = []


def kernels(op: str, direction: str | None = None) -> tuple[Kernel, ...]:
    """The kernels of an op, the user's own last.

    Args:
        op: such as `"conv2d"`.
        direction: `"forward"`, `"input_gradient"` or `"weight_gradient"`; None for all.

    Raises:
        ValueError: there is no such op or direction.

    Example:

    >>> [kernel.name for kernel in tfaccel.ops.kernels("depthwise_conv2d", "forward")]
    ['tensorflow', 'fused_offsets', 'onednn', 'in_float32', 'opencl']
    """
    one_of("op", op, OPS)
    wanted = None if direction is None else one_of("direction", direction, DIRECTIONS)
    return tuple(
        kernel
        for kernel in (*KERNELS, *_registered)
        if kernel.op == op and wanted in (None, kernel.direction)
    )


def named(op: str, direction: str, name: str) -> Kernel | None:
    """The kernel called so; None where there is none (any longer)."""
    return next((k for k in kernels(op, direction) if k.name == name), None)


def reference(op: str, direction: str) -> Kernel:
    """TensorFlow's own kernel."""
    return next(k for k in kernels(op, direction) if k.name == REFERENCE)


def register_kernel(
    op: str,
    *,
    name: str,
    direction: str = "forward",
    summary: str = "",
    source: str = "",
    unsupported: Callable[[CallSpec], Unsupported | None] = serves_all,
    tolerance: Mapping[str, float] | None = None,
    jit_compile: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a function of your own a candidate for one direction of an op.

    From then on `find` measures it, and the pass `kernels` and the ops use it where it won.
    It need not be differentiable: each direction has kernels of its own.

    Args:
        op: such as `"conv2d"`.
        name: an identifier that no kernel of this op and direction has.
        direction: which of the three it computes.
        summary: what it computes, in one clause.
        source: where the method comes from.
        unsupported: a `tfaccel.Unsupported` for a call that it can't serve, None for others.
        tolerance: the largest relative error, by dtype; None for the usual one.
        jit_compile: whether XLA compiles it.

    Returns:
        A decorator. The function takes `(spec, x, w)`, for a gradient `(spec, dy, w, shape)`
        or `(spec, x, dy, shape)`, where `shape` is the result's.

    Raises:
        ValueError: the op or direction does not exist, or the name is taken or no
            identifier.
        TypeError: the function does not take these arguments.

    Example:

    >>> @tfaccel.ops.register_kernel("matmul", name="by_einsum")
    ... def by_einsum(spec, x, w):
    ...     return tf.einsum("...nk,km->...nm", x, w)
    >>> tfaccel.ops.kernels("matmul", "forward")[-1].name
    'by_einsum'
    >>> tfaccel.ops.unregister_kernel("matmul", "by_einsum")
    """
    one_of("op", op, OPS)
    way = one_of("direction", direction, DIRECTIONS)
    if not isinstance(name, str) or not name.isidentifier():
        raise ValueError(f"`name` must be an identifier. Received: {name!r}")
    if named(op, way, name) is not None:
        raise ValueError(f"`name` must be new: {op} has a {way} kernel called {name!r} already")

    def register(fn: Callable[..., Any]) -> Callable[..., Any]:
        _check_signature(fn, way)
        bounds = dict(TOLERANCES) | dict(tolerance or {})
        _registered.append(
            Kernel(op, way, name, fn, summary, source, unsupported, bounds, jit_compile)
        )
        return fn

    return register


def unregister_kernel(op: str, name: str, direction: str = "forward") -> None:
    """Takes a kernel that was registered back.

    Raises:
        ValueError: no such kernel was registered.
    """
    found = [k for k in _registered if (k.op, k.name, k.direction) == (op, name, direction)]
    if not found:
        raise ValueError(f"no {direction} kernel {name!r} of {op!r} was registered")
    _registered.remove(found[0])


def _check_signature(fn: Any, direction: str) -> None:
    wanted = {
        "forward": "(spec, x, w)",
        "input_gradient": "(spec, dy, w, shape)",
        "weight_gradient": "(spec, x, dy, shape)",
    }[direction]
    try:
        inspect.signature(fn).bind(*range(wanted.count(",") + 1))
    except (TypeError, ValueError):
        raise TypeError(
            f"a {direction} kernel must be a function that takes {wanted}. Received: {fn!r}"
        ) from None
