"""Convolutions of images and matrix products, in any direction, by the programs of products.cl."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from tfaccel.ops.kernels._geometry import paddings
from tfaccel.ops.kernels._opencl import clblast
from tfaccel.ops.kernels._opencl.runtime import Runtime, runtime
from tfaccel.ops.kernels._opencl.variants import CLBLAST, Variant, chosen
from tfaccel.ops.kernels._spec import CallSpec

# The fields of products.cl's `Call`, in its order.
_FIELDS = (
    *("height", "width", "source_height", "source_width", "taps_high", "taps_wide"),
    *("times_high", "times_wide", "step_high", "step_wide", "offset_high", "offset_wide"),
    *("divisor_high", "divisor_wide", "rows", "inner", "columns", "pixel_a", "group_a"),
    *("tap_b", "group_b", "row_b", "group_out", "row_out", "part_rows", "parts", "multiplier"),
)
_VECTOR, _EACH = 16, 4  # numbers of a vector; rows and columns of an item of a tile
# Sums over more rows than these are made in parts, for other items to work on, as long as there
# are few of them.
_ROWS_OF_A_PART, _ENOUGH_ITEMS = 512, 4096
_TRIAL = 256  # rows and columns of the matrices that the variants are timed with


@functools.cache
def variant(at: Runtime) -> Variant:
    """The fastest on a device."""
    a, b = np.random.default_rng(0).standard_normal((2, 1, _TRIAL, _TRIAL), np.float32)
    return chosen(at.device, lambda by: matrices(a, b, at, by))


@functools.cache
def matrix_variant(at: Runtime) -> Variant:
    """The fastest for matrices of float32, of which CLBlast may be one."""
    if not clblast.is_installed():
        return variant(at)
    a, b = np.random.default_rng(0).standard_normal((2, 1, _TRIAL, _TRIAL), np.float32)
    return chosen(at.device, lambda by: matrices(a, b, at, by), among=(variant(at), CLBLAST))


def convolution(spec: CallSpec, a: np.ndarray, b: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """A convolution of images in the direction of `spec`.

    For the input's gradient the last two dimensions of the weights are exchanged. The weights'
    gradient is given in parts, along a new first dimension, which are to be summed.

    Args:
        spec: the call.
        a, b: the operands.
        shape: of the result.
    """
    x = shape if spec.direction == "input_gradient" else a.shape
    y = {"forward": shape, "input_gradient": a.shape}.get(spec.direction, b.shape)
    call = _window(spec, x, y)
    if spec.op == "depthwise_conv2d":
        return _depthwise(spec, a, b, shape, call)
    groups, inner, columns = spec.groups, x[3] // spec.groups, y[3] // spec.groups
    if spec.direction == "input_gradient":
        inner, columns = columns, inner
    call |= {"inner": inner, "columns": columns, "pixel_a": a.shape[3], "group_a": inner}
    call |= {"group_out": columns, "row_out": groups * columns}
    if spec.direction == "weight_gradient":
        return _weights(runtime(), a, b, shape, call | {"group_b": columns}, groups)
    if spec.direction == "forward":
        call |= {"tap_b": inner * groups * columns, "group_b": columns, "row_b": groups * columns}
    else:
        call |= {"tap_b": groups * inner * columns, "group_b": inner * columns, "row_b": columns}
    return _rows(runtime(), variant(runtime()), a, b, shape, call, groups)


def matrices(
    a: np.ndarray, b: np.ndarray, at: Runtime | None = None, by: Variant | None = None
) -> np.ndarray:
    """`a b` for batches of matrices, `(batch, n, k)` and `(batch, k, m)`.

    Args:
        a, b: the operands.
        at, by: where and how; None for the device's own.
    """
    at = at or runtime()
    by = by or (matrix_variant if a.dtype == np.float32 else variant)(at)
    if by.is_clblast:
        return clblast.matrices(at, a, b)
    (batch, n, k), m = a.shape, b.shape[-1]
    call = _matrix(n) | {"inner": k, "columns": m, "pixel_a": k, "group_a": n * k}
    call |= {"group_b": k * m, "tap_b": 0, "row_b": m, "group_out": n * m, "row_out": m}
    return _rows(at, by, a, b, (batch, n, m), call, batch)


def crossed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`a' b` for two matrices, in parts as `convolution` gives them."""
    inner, columns = a.shape[1], b.shape[1]
    call = _matrix(len(a)) | {"inner": inner, "columns": columns, "pixel_a": inner}
    return _weights(runtime(), a, b, (inner, columns), call | {"row_out": columns}, 1)


def _matrix(rows: int) -> dict[str, int]:
    """A matrix as an image of one row."""
    ones = ("height", "source_height", "taps_high", "taps_wide", "times_high", "times_wide")
    call = dict.fromkeys((*ones, "divisor_high", "divisor_wide", "parts"), 1)
    return call | dict.fromkeys(("width", "source_width", "rows"), rows)


def _window(spec: CallSpec, x: Sequence[int], y: Sequence[int]) -> dict[str, int]:
    """Where the pixels of the operand that is summed over are seen."""
    backward = spec.direction == "input_gradient"
    pixels, source = (x, y) if backward else (y, x)
    call = {"height": pixels[1], "width": pixels[2], "parts": 1}
    call |= {"source_height": source[1], "source_width": source[2]}
    call["rows"] = math.prod(pixels[:3])
    before = [int(pair[0]) for pair in paddings(spec, [int(n) for n in x[1:3]])]
    for i, way in enumerate(("high", "wide")):
        stride, dilation = spec.strides[i], spec.dilation[i]
        call[f"taps_{way}"] = spec.kernel_size[i]
        call[f"times_{way}"] = 1 if backward else stride
        call[f"step_{way}"] = -dilation if backward else dilation
        call[f"offset_{way}"] = before[i] if backward else -before[i]
        call[f"divisor_{way}"] = stride if backward else 1
    return call


def _packed(call: dict[str, int]) -> np.ndarray:
    return np.array([call.get(name, 0) for name in _FIELDS], np.int32)


def _options(a: np.ndarray, by: Variant, columns: int) -> str:
    half = " -DHALF" if a.dtype == np.float16 else ""
    return f"-DHIGH={by.high} -DWIDE={_vectors(columns)} -DGROUP={by.group}{half}"


def _tiles(by: Variant, columns: int, rows: int) -> tuple[list[int], tuple[int, ...]]:
    """The items that make a result of `rows` and `columns`, and how many of them a group."""
    side = _EACH * by.group
    return [by.group * -(-n // side) for n in (columns, rows)], (by.group, by.group, 1)


def _vectors(columns: int) -> int:
    """How many vectors of columns an item of `direct` has."""
    return 1 if columns <= _VECTOR else 2


def _side_by_side(b: np.ndarray, call: dict[str, int], groups: int) -> np.ndarray:
    """The columns of each item of `direct` in one piece: far apart they fall on the same lines of
    a cache.
    """
    wide, taps = _vectors(call["columns"]) * _VECTOR, call["taps_high"] * call["taps_wide"]
    full, rest = divmod(call["columns"], wide)
    packed = np.zeros((groups, full + bool(rest), taps, call["inner"], wide), b.dtype)
    apart = (call["group_b"], wide, call["tap_b"], call["row_b"], 1)
    steps = [n * b.itemsize for n in apart]

    def pieces(start: int, shape: tuple[int, ...]) -> np.ndarray:
        return np.lib.stride_tricks.as_strided(b.reshape(-1)[start:], shape, steps)

    packed[:, :full] = pieces(0, (groups, full, *packed.shape[2:]))
    if rest:
        packed[:, full:, ..., :rest] = pieces(full * wide, (groups, 1, taps, call["inner"], rest))
    return packed


def _rows(
    at: Runtime,
    by: Variant,
    a: np.ndarray,
    b: np.ndarray,
    shape: Sequence[int],
    call: dict[str, int],
    groups: int,
) -> np.ndarray:
    rows, columns = call["rows"], call["columns"]
    operands: tuple[np.ndarray, ...] = (a, b)
    if by.tiled:
        items, group = _tiles(by, columns, rows)
        name, items = "tiled", [*items, groups]
    else:
        wide = _vectors(columns) * _VECTOR
        items = [-(-rows // by.high), -(-columns // wide), groups]
        name, group = "direct", (1, 1, 1)
        operands = (a, _side_by_side(b, call, groups), np.zeros(call["inner"], a.dtype))
        call = call | {"tap_b": call["inner"] * wide}
    options = _options(a, by, columns)
    return at.run(name, options, operands, shape, _packed(call), items, group)


def _weights(
    at: Runtime,
    a: np.ndarray,
    b: np.ndarray,
    shape: Sequence[int],
    call: dict[str, int],
    groups: int,
) -> np.ndarray:
    by, taps = variant(at), call["taps_high"] * call["taps_wide"]
    inner, columns = call["inner"], call["columns"]
    if by.tiled:
        name, (items, group) = "tiled_weights", _tiles(by, columns, taps * inner)
    else:
        items = [taps * -(-inner // by.high), -(-columns // (_vectors(columns) * _VECTOR))]
        name, group = "direct_weights", (1, 1, 1)
    call = call | _parts(call["rows"], math.prod(items) * groups) | {"row_b": b.shape[-1]}
    items, whole = [*items, groups * call["parts"]], (call["parts"], *shape)
    options = _options(a, by, columns)
    return at.run(name, options, (a, b), whole, _packed(call), items, group)


def _parts(rows: int, items: int) -> dict[str, int]:
    parts = max(1, min(rows // _ROWS_OF_A_PART, _ENOUGH_ITEMS // max(items, 1)))
    part_rows = -(-rows // parts)
    return {"part_rows": part_rows, "parts": -(-rows // part_rows)}


def _depthwise(
    spec: CallSpec, a: np.ndarray, b: np.ndarray, shape: Sequence[int], call: dict[str, int]
) -> np.ndarray:
    at, multiplier = runtime(), int(spec.w[-1] or 1)
    of_weights, columns = spec.direction == "weight_gradient", shape[3]
    taps = call["taps_high"] * call["taps_wide"]
    call |= {"pixel_a": a.shape[3], "multiplier": multiplier}
    call["inner"] = multiplier if spec.direction == "input_gradient" else 1
    call["tap_b"] = math.prod(spec.w[-2:])  # type: ignore[arg-type]
    if of_weights:
        columns = math.prod(shape[2:])
        call |= _parts(call["rows"], taps * columns // _VECTOR) | {"row_b": columns}
        shape = (call["parts"], *shape)
    call |= {"columns": columns, "row_out": columns}
    rest = (taps, call["parts"]) if of_weights else (call["rows"], 1)
    name = "depthwise_weights" if of_weights else "depthwise"
    items = (-(-columns // _VECTOR), *rest)
    group = (1, 1, 1) if at.device.type == "CPU" else None
    options = _options(a, Variant(), columns)
    return at.run(name, options, (a, b), shape, _packed(call), items, group)
