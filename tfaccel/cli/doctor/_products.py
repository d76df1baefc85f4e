"""doctor's trial of 16-bit products on each device: right, and faster than in float32?

What a chip has instructions for is one thing; what the installed TensorFlow makes of
them is another, so both are tried and timed.
"""

import functools
import statistics
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from tfaccel.cli.doctor._finding import Finding, Level
from tfaccel.cli.doctor._gpu import GROWTH
from tfaccel.cli.doctor._surroundings import Surroundings
from tfaccel.data.findings import first_line
from tfaccel.measure.racing import race
from tfaccel.measure.timing import Speedup, wait_for
from tfaccel.system.device import Device, read_cpu

# Half the distance from 1 to the next number of the dtype: what rounding a result
# once may cost. https://en.wikipedia.org/wiki/Machine_epsilon
_UNIT_ROUNDOFF = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
# The factors are exact in 16 bits, so a product that is summed in float32, as it should
# be, is off by its last rounding alone: by half of one on average. A sum of k terms in
# 16 bits is off by about sqrt(k / 6) roundings, which is 3 and more here.
_ROUNDINGS = 2
# Trials end after this long, or after three pairs where these take longer.
_TIMING_SECONDS = 3.0
# Products in a row on a GPU, so that it is never idle between two calls.
_GPU_REPEATS = 8
_EDGE = 64  # of the small matrices and images that results are compared on

Product = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
PRODUCTS: tuple[tuple[str, Product], ...] = (
    ("matrix products", tf.matmul),
    ("convolutions", functools.partial(tf.nn.conv2d, strides=1, padding="SAME")),
)


def check_products(here: Surroundings) -> Iterator[Finding]:
    """Matrix products and convolutions on each device."""
    if here.tensorflow.gpus() and here.environ.get(GROWTH) == "false":
        yield Finding(
            "products",
            f"not tried: {GROWTH}=false would have TensorFlow take all of the GPU's memory",
            Level.NOTE,
            f"Run `{GROWTH}=true tfaccel doctor`.",
        )
        return
    for name in here.tensorflow.devices():
        device = _device(name, here)
        # Where no 16-bit dtype is fast, it is worth knowing how slow one is.
        dtype = device.fast_dtype or "bfloat16"
        failed = [f for label, product in PRODUCTS if (f := tried(label, product, name, dtype))]
        yield from failed
        if not failed:
            yield timed_products(device, name, dtype, here)


def _device(name: str, here: Surroundings) -> Device:
    kind, index = name.split(":")[-2:]
    if kind == "CPU":
        return read_cpu(here.root / "proc" / "cpuinfo")
    gpu = here.tensorflow.gpus()[int(index)]
    return Device("GPU", gpu.name, compute_capability=gpu.compute_capability)


def tried(label: str, product: Product, device: str, dtype: str) -> Finding | None:
    """What is wrong with a small product in float32 and in 16 bits; None if nothing is."""
    area = _area(device)
    try:
        with tf.device(device):
            left, right = _factors(label, dtype)
            exact = product(tf.cast(left, "float32"), tf.cast(right, "float32")).numpy()
    except Exception as error:
        said = f"{label} fail in float32: {type(error).__name__}: {first_line(error)}"
        remedy = "If memory ran out: end what else uses the device. Else reinstall TensorFlow."
        return Finding(area, said, Level.PROBLEM, remedy)
    try:
        with tf.device(device):
            got = tf.cast(product(left, right), "float32").numpy()
    except Exception as error:
        said = f"{label} fail in {dtype}: {type(error).__name__}: {first_line(error)}"
        return Finding(area, said, Level.WARNING, "Train in float32, or update TensorFlow.")
    off = float(np.linalg.norm(got - exact) / np.linalg.norm(exact))
    if off <= _ROUNDINGS * _UNIT_ROUNDOFF[dtype]:  # a NaN is not
        return None
    said = f"{label} in {dtype} are off by {off:.1%}, more than its rounding explains"
    remedy = "Train in float32 (AccelCallback(excludes=['mixed_precision'])); update TensorFlow."
    return Finding(area, said, Level.PROBLEM, remedy)


def _factors(label: str, dtype: str) -> tuple[tf.Tensor, tf.Tensor]:
    shapes: tuple[tuple[int, ...], ...] = ((_EDGE, _EDGE), (_EDGE, _EDGE))
    if label == "convolutions":
        shapes = ((2, 16, 16, _EDGE), (3, 3, _EDGE, _EDGE))
    left, right = (_numbers(shape, seed) for seed, shape in enumerate(shapes))
    return tf.cast(left, dtype), tf.cast(right, dtype)


def _numbers(shape: tuple[int, ...], seed: int) -> tf.Tensor:
    return tf.random.stateless_uniform(shape, seed=(seed, 0), minval=-1.0)


def timed_products(device: Device, name: str, dtype: str, here: Surroundings) -> Finding:
    """How fast large products are in 16 bits, against float32."""
    size, repeats = here.sizes[device.kind], _GPU_REPEATS if device.kind == "GPU" else 1
    with tf.device(name):
        full, half = (_multiplication(size, kind, repeats) for kind in ("float32", dtype))
        for step in (full, half):  # the first call loads kernels
            wait_for(step())
        raced = race(full, half, here.clock, deadline=here.clock() + _TIMING_SECONDS)
    flops = 2 * size**3 * repeats
    rates = [
        flops / statistics.median(side)
        for side in (raced.baseline_seconds, raced.candidate_seconds)
    ]
    return verdict(device, _area(name), dtype, raced.gain, (rates[0], rates[1]))


def _multiplication(size: int, dtype: str, repeats: int) -> Callable[[], tf.Tensor]:
    """Multiplies two square matrices, some times in a row."""
    left, right = (tf.cast(_numbers((size, size), seed), dtype) for seed in (0, 1))

    def multiply() -> tf.Tensor:
        for _ in range(repeats):
            product = tf.matmul(left, right)
        # One number of it, as the whole would take longer to fetch than to compute.
        return product[0, 0]

    return multiply


def verdict(
    device: Device, area: str, dtype: str, gain: Speedup, rates: tuple[float, float]
) -> Finding:
    """What the speed of 16-bit products means on that device.

    Args:
        device: which; what its chip has instructions for decides what to expect.
        area: what to call it.
        dtype: the 16-bit dtype.
        gain: how many times as fast as in float32.
        rates: FLOP/s in float32 and in `dtype`.
    """
    full, half = (f"{rate / 1e9:,.0f}" for rate in rates)
    said = (
        f"{dtype} products are right, and run at {gain} the speed of float32 "
        f"({half} against {full} GFLOP/s)"
    )
    if gain.low > 1.0:
        return Finding(area, said)
    if device.fast_dtype is None:
        said += "; the chip has no instructions for them"
        remedy = "Train in float32 here. tfaccel does not try mixed_precision by itself."
        return Finding(area, said, Level.NOTE, remedy)
    if gain.high < 1.0:
        said += ", though the chip has instructions for them"
        remedy = (
            "Set TF_ENABLE_ONEDNN_OPTS=1, unset ONEDNN_MAX_CPU_ISA, update TensorFlow."
            if device.kind == "CPU"
            else "Update TensorFlow and the driver; see whether others use the GPU."
        )
        return Finding(area, said, Level.WARNING, remedy)
    remedy = "Nothing: AccelCallback tries mixed_precision and keeps it only where it is faster."
    return Finding(area, f"{said}: no difference to be seen", Level.NOTE, remedy)


def _area(device: str) -> str:
    return "products on " + ":".join(device.split(":")[-2:])
