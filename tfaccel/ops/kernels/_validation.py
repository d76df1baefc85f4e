"""Validates the ops' arguments, and describes them by a `CallSpec`."""

from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.ops.kernels._spec import (
    DIRECTIONS,
    DTYPES,
    OPS,
    CallSpec,
    Shape,
    output_size,
)
from tfaccel.system.arguments import one_of, positive

RANKS = {"conv1d": 1, "conv2d": 2, "conv3d": 3, "depthwise_conv2d": 2}


def checked_dtype(dtype: Any) -> str:
    """The name of a floating-point dtype; ValueError if it is none."""
    try:
        return one_of("dtype", tf.as_dtype(dtype).name, DTYPES)
    except TypeError:  # it is the name of nothing
        return one_of("dtype", dtype, DTYPES)


def convolution_spec(
    op: str,
    x: Sequence[int | None],
    filters: Sequence[int | None],
    dtype: str,
    *,
    strides: Any = 1,
    padding: Any = "valid",
    dilation_rate: Any = 1,
    groups: Any = 1,
) -> CallSpec:
    """A convolution's call, its channels last; TypeError or ValueError names the argument."""
    rank = RANKS[op]
    x, w = _shape("x", x, rank + 2), _shape("filters", filters, rank + 2)
    if None in w:
        raise ValueError(f"`filters` must have a known shape. Received: {w}")
    if x[-1] is None:
        raise ValueError(f"`x` must have a known number of channels. Received the shape {x}")
    groups = positive("groups", groups)
    _check_channels(op, x, w, groups)
    spec = CallSpec(
        op=op,
        direction="forward",
        dtype=dtype,
        x=x,
        w=w,
        strides=_per_dimension("strides", strides, rank),
        padding=_padding(padding),
        dilation=_per_dimension("dilation_rate", dilation_rate, rank),
        groups=groups,
    )
    _check_window(spec)
    return spec


def matmul_spec(a: Sequence[int | None], b: Sequence[int | None], dtype: str) -> CallSpec:
    """A matrix product's call; TypeError or ValueError names the argument."""
    x, w = _shape("a", a), _shape("b", b)
    if len(x) < 2 or len(w) < 2:
        raise ValueError(f"`a` and `b` must be matrices or batches of them. Received: {x} and {w}")
    if None not in (x[-1], w[-2]) and x[-1] != w[-2]:
        raise ValueError(
            "`a` must have as many columns as `b` has rows. "
            f"Received (after transposing): {x} and {w}"
        )
    for n, m in zip(reversed(x[:-2]), reversed(w[:-2]), strict=False):
        if None not in (n, m) and n != m and 1 not in (n, m):
            raise ValueError(
                f"the batch dimensions of `a` and `b` must broadcast. Received: {x} and {w}"
            )
    return CallSpec("matmul", "forward", dtype, x, w)


def spec_of(op: str, shapes: Any, dtype: str, direction: str, **arguments: Any) -> CallSpec:
    """The call that `find` is asked about, complete; TypeError or ValueError as above."""
    one_of("op", op, OPS)
    if not isinstance(shapes, Sequence) or isinstance(shapes, str) or len(shapes) != 2:
        raise TypeError(f"`shapes` must be the two operands' shapes. Received: {shapes!r}")
    name = checked_dtype(dtype)
    if op == "matmul":
        unused = {k: v for k, v in arguments.items() if v not in (1, "valid")}
        if unused:
            raise ValueError(f"matmul takes no {', '.join(unused)}. Received: {unused}")
        spec = matmul_spec(shapes[0], shapes[1], name)
    else:
        spec = convolution_spec(op, shapes[0], shapes[1], name, **arguments)
    if not spec.is_known:
        raise ValueError(f"`shapes` must be known to be measured. Received: {shapes!r}")
    return spec.along(one_of("direction", direction, DIRECTIONS))


def tensors(first: str, a: Any, second: str, b: Any) -> tuple[tf.Tensor, tf.Tensor, str]:
    """The operands as tensors, and the name of their common dtype; TypeError if they have none."""
    # Keras's function may give the variable itself, which is no tensor yet.
    a, b = (tf.convert_to_tensor(keras.ops.convert_to_tensor(x)) for x in (a, b))
    if a.dtype != b.dtype or a.dtype.name not in DTYPES:
        raise TypeError(
            f"`{first}` and `{second}` must have the same dtype, one of {', '.join(DTYPES)}. "
            f"Received: {a.dtype.name} and {b.dtype.name}"
        )
    for name, tensor in ((first, a), (second, b)):
        if tensor.shape.rank is None:
            raise ValueError(f"`{name}` must have a known rank. Received: {tensor}")
    return a, b, a.dtype.name


def data_format(value: Any) -> str:
    """Where the channels are; None stands for Keras's setting. ValueError if it is neither."""
    if value is None:
        return keras.config.image_data_format()
    return one_of("data_format", value, ("channels_last", "channels_first"))


def _shape(name: str, shape: Any, rank: int | None = None) -> Shape:
    try:
        sizes = tuple(None if n is None else int(n) for n in shape)
    except (TypeError, ValueError):
        raise TypeError(f"the shape of `{name}` must be a tuple. Received: {shape!r}") from None
    if any(n is not None and n < 0 for n in sizes):
        raise ValueError(f"the shape of `{name}` must not be negative. Received: {sizes}")
    if rank is not None and len(sizes) != rank:
        raise ValueError(f"`{name}` must have {rank} dimensions. Received the shape {sizes}")
    return sizes


def _per_dimension(name: str, value: Any, rank: int) -> tuple[int, ...]:
    values = value if isinstance(value, tuple | list) else (value,) * rank
    if len(values) != rank:
        raise ValueError(f"`{name}` must be an int or {rank} of them. Received: {value!r}")
    return tuple(positive(name, item) for item in values)


def _padding(padding: Any) -> str:
    name = padding.lower() if isinstance(padding, str) else padding
    if name not in ("valid", "same"):
        raise ValueError(
            f'`padding` must be "valid" or "same" ("causal" for conv1d only). Received: {padding!r}'
        )
    return name


def _check_channels(op: str, x: Shape, w: Shape, groups: int) -> None:
    channels, inner, filters = x[-1] or 0, w[-2] or 0, w[-1] or 0
    if channels != inner * groups or filters % groups:
        depthwise = op == "depthwise_conv2d"
        rule = "channels" if depthwise else "channels / groups, and filters a multiple of groups"
        raise ValueError(
            f"the last but one dimension of `filters` must be {rule}. Received: {channels} "
            f"channels, {groups} groups, filters of the shape {w}"
        )


def _check_window(spec: CallSpec) -> None:
    """As Keras does, refuses a convolution that no window fits into."""
    for n, k, s, d in zip(spec.x[1:-1], spec.kernel_size, spec.strides, spec.dilation, strict=True):
        if n and output_size(n, k, s, d, spec.padding) == 0:
            raise ValueError(
                f"`filters` must fit into `x`. Received: a window of {d * (k - 1) + 1} pixels "
                f"(kernel {k}, dilation {d}) on {n}"
            )
