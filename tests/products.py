"""Products as plain NumPy in float64, and random calls: what kernels are compared with."""

import dataclasses
import itertools

import numpy as np
from hypothesis import strategies as st

from tfaccel.ops.kernels import CallSpec
from tfaccel.system.device import Device

# Devices on which some kernels serve that others refuse; what runs is the same code.
DEVICES = (
    Device("CPU", "new CPU", flags=frozenset({"avx512_bf16"})),
    Device("GPU", "some GPU", compute_capability=(8, 0)),
)


def _pads(spec):
    pairs = []
    for n, k, s, d in zip(spec.x[1:-1], spec.kernel_size, spec.strides, spec.dilation, strict=True):
        total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0) if spec.padding == "same" else 0
        pairs.append((total // 2, total - total // 2))
    return pairs


def _windows(spec):
    """For each tap the slice of the padded input that it sees."""
    for tap in itertools.product(*map(range, spec.kernel_size)):
        cuts = [
            slice(i * d, i * d + (n - 1) * s + 1, s)
            for i, d, n, s in zip(tap, spec.dilation, spec.y[1:-1], spec.strides, strict=True)
        ]
        yield tap, (slice(None), *cuts)


def _taps_of(spec, w):
    """The weights as matrices from all channels to all outputs: `(*kernel, channels, outputs)`."""
    channels, outputs = spec.x[-1], spec.y[-1]
    full = np.zeros((*spec.kernel_size, channels, outputs))
    for c, f in itertools.product(range(channels), range(outputs)):
        if spec.op == "depthwise_conv2d":
            if f // w.shape[-1] == c:
                full[..., c, f] = w[..., c, f % w.shape[-1]]
        elif c // (channels // spec.groups) == f // (outputs // spec.groups):
            full[..., c, f] = w[..., c % (channels // spec.groups), f]
    return full


def _weights_of(spec, full):
    """The reverse of `_taps_of`, for gradients."""
    w = np.zeros(spec.w)
    channels, outputs = spec.x[-1], spec.y[-1]
    for c, f in itertools.product(range(channels), range(outputs)):
        if spec.op == "depthwise_conv2d":
            if f // spec.w[-1] == c:
                w[..., c, f % spec.w[-1]] = full[..., c, f]
        elif c // (channels // spec.groups) == f // (outputs // spec.groups):
            w[..., c % (channels // spec.groups), f] = full[..., c, f]
    return w


def _summed_to(gradient, shape):
    lead = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(lead)))
    return gradient.sum(
        axis=tuple(i for i, n in enumerate(shape) if n == 1 != gradient.shape[i]), keepdims=True
    )


def exact(spec, a, b):
    """One direction of a product, tap by tap."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if spec.op == "matmul":
        if spec.direction == "forward":
            return a @ b
        if spec.direction == "input_gradient":
            return _summed_to(a @ np.swapaxes(b, -1, -2), spec.x)
        return _summed_to(np.swapaxes(a, -1, -2) @ b, spec.w)
    pads = _pads(spec)
    inner = tuple(slice(p, p + n) for (p, _), n in zip(pads, spec.x[1:-1], strict=True))
    padded_shape = [n + sum(p) for n, p in zip(spec.x[1:-1], pads, strict=True)]
    padded = np.zeros((spec.x[0], *padded_shape, spec.x[-1]))
    if spec.direction == "input_gradient":
        w = _taps_of(spec, b)
        for tap, cut in _windows(spec):
            padded[cut] += a @ w[tap].T
        return padded[(slice(None), *inner)]
    padded[(slice(None), *inner)] = a
    if spec.direction == "forward":
        w = _taps_of(spec, b)
        return sum(padded[cut] @ w[tap] for tap, cut in _windows(spec))
    full = np.zeros((*spec.kernel_size, spec.x[-1], spec.y[-1]))
    for tap, cut in _windows(spec):
        full[tap] = np.tensordot(padded[cut], b, axes=[range(b.ndim - 1)] * 2)
    return _weights_of(spec, full)


@st.composite
def _convolutions(draw, op, direction, dtype):
    rank = {"conv1d": 1, "conv3d": 3}.get(op, 2)
    kind = draw(st.sampled_from(["one pixel", "plain", "strided", "dilated", "grouped"]))
    depthwise = op == "depthwise_conv2d"

    def sizes(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(rank))

    ones = (1,) * rank
    window = ones if kind == "one pixel" else sizes(1, 3)
    strides = sizes(1, 3) if kind in ("one pixel", "strided") else ones
    dilation = sizes(1, 2) if kind == "dilated" else ones
    groups = draw(st.integers(2, 3)) if kind == "grouped" and not depthwise else 1
    inner, filters = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.sampled_from(["valid", "same"]))
    least = [
        1 if padding == "same" else d * (k - 1) + 1 for d, k in zip(dilation, window, strict=True)
    ]
    spatial = tuple(draw(st.integers(n, n + 4)) for n in least)
    return CallSpec(
        op,
        direction,
        dtype,
        x=(draw(st.integers(0, 3)), *spatial, inner * groups),
        w=(*window, inner, filters * (1 if depthwise else groups)),
        strides=strides,
        padding=padding,
        dilation=dilation,
        groups=groups,
        device=draw(st.sampled_from(DEVICES)),
    )


@st.composite
def _matmuls(draw, op, direction, dtype):
    n, k, m = (draw(st.integers(1, 9)) for _ in range(3))
    batch = draw(st.sampled_from([(), (0,), (1,), (3,), (2, 3)]))
    other = draw(st.sampled_from([(), (), batch, (1,) * len(batch), batch[1:]]))
    return CallSpec(
        op,
        direction,
        dtype,
        x=(*batch, n, k),
        w=(*other, k, m),
        device=draw(st.sampled_from(DEVICES)),
    )


def calls(op, direction):
    """Random calls of an op in one direction, with empty batches, 1x1 images and the like."""
    made = _matmuls if op == "matmul" else _convolutions
    dtypes = st.sampled_from(["float32", "float64", "bfloat16", "float16"])
    return dtypes.flatmap(lambda dtype: made(op, direction, dtype))


def with_unknown_sizes(spec):
    """The call as it is known while a step is traced for batches of any size."""
    if spec.op == "matmul":
        return dataclasses.replace(spec, x=(*(None for _ in spec.x[:-1]), spec.x[-1]))
    return dataclasses.replace(spec, x=(*(None for _ in spec.x[:-1]), spec.x[-1]))
