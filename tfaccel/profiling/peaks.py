"""The most floating-point operations a second that a device can do: what MFU is a share of.

A GPU's peak is the datasheet's; a CPU's is measured, because no datasheet gives it for
the clock that the chip runs at under load.
"""

import csv
import dataclasses
import functools
import pathlib
import re
import time
from collections.abc import Callable, Iterator, Mapping

import tensorflow as tf

from tfaccel.measure.timing import Clock
from tfaccel.system.device import Device

_TERA = 1e12

# What a GPU's name may say besides its model without being another chip: the maker, the
# brand, the board and the memory. A word beyond these ("Laptop", "Ti", "MIG", "GRID")
# makes it another chip, or a part of one.
_NEUTRAL = re.compile(r"nvidia|tesla|geforce|generation|sxm4|pcie|hbm3e?|hbm2e?|\d+gb")
DTYPES = ("float64", "float32", "float16", "bfloat16")
# Sides of the square products. The largest takes 48 MB in float32, little beside what a
# training uses; larger ones are hardly faster.
_SIDES = (256, 512, 1024, 2048)
_REPETITIONS = 5
_BUDGET_SECONDS = 0.5
# Calls `multiply(side)`: one product of two square matrices.
Multiply = Callable[[int], object]


@dataclasses.dataclass(frozen=True)
class GpuPeaks:
    """A GPU's datasheet peaks, dense."""

    name: str  # the words of TensorFlow's `device_name` that make it this chip
    # TFLOP/s by dtype, None where the chip has none or they are no use: `"float32"` outside of
    # Tensor Cores, `"tensorfloat32"` products of float32 operands (from Ampere on), `"float16"`
    # and `"bfloat16"` on Tensor Cores, with float32 accumulation wherever the source tells the
    # accumulators apart, as TensorFlow accumulates in float32, and `"float64"`.
    teraflops: Mapping[str, float | None]
    source: str  # where the maker says so

    def flops_per_second(self, dtype: str) -> float | None:
        """The peak for a dtype or `"tensorfloat32"`; None where the chip has none."""
        rate = self.teraflops[dtype]
        return None if rate is None else rate * _TERA


def _read(path: pathlib.Path) -> Iterator[GpuPeaks]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        name, source = row.pop("name"), row.pop("source")
        rates = {dtype: float(rate) if rate else None for dtype, rate in row.items()}
        yield GpuPeaks(name, rates, source)


GPU_PEAKS = tuple(_read(pathlib.Path(__file__).with_name("gpus.csv")))


def find_gpu(device_name: str) -> GpuPeaks | None:
    """The row of `GPU_PEAKS` for a GPU, by TensorFlow's name for it.

    The row with the most words that are all in the name. Any other word in it must say
    nothing of the chip's speed, so that a laptop's or a sliced GPU is not taken for the
    whole card.

    Args:
        device_name: as in `tf.config.experimental.get_device_details`.

    Returns:
        The row, or None for a chip that the table does not have.

    >>> find_gpu("NVIDIA A100-SXM4-40GB").name
    'a100'
    >>> find_gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None
    True
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    telling = {word for word in words if not _NEUTRAL.fullmatch(word)}
    fitting = [row for row in GPU_PEAKS if telling <= set(row.name.split()) <= words]
    return max(fitting, key=lambda row: len(row.name.split()), default=None)


@dataclasses.dataclass(frozen=True)
class Peak:
    """A device's peak rate."""

    flops_per_second: float  # floating-point operations a second; a multiply-add is two
    dtype: str  # what is multiplied; `"tensorfloat32"` where TensorFlow does float32 products so
    source: str  # a datasheet's address, or how it was measured


def peak_flops(device: Device, dtype: str, clock: Clock = time.perf_counter) -> Peak | None:
    """The peak rate of a device at products of a dtype.

    Args:
        device: the device that a step runs on.
        dtype: what its products are computed in: `"float32"`, `"bfloat16"`, `"float16"`
            or `"float64"`. On GPUs since Ampere TensorFlow does float32 products as
            TensorFloat-32 unless told otherwise, and the peak is that one's.
        clock: seconds; used on a CPU, where the peak is measured, once a process and
            dtype, in about half a second.

    Returns:
        The peak, or None for a GPU that is not in `GPU_PEAKS` or lacks the dtype.

    Raises:
        ValueError: `dtype` is another.

    Source: the peak as the denominator of MFU is PaLM's, appendix B
    (https://arxiv.org/abs/2204.02311).
    """
    if dtype not in DTYPES:
        raise ValueError(f"`dtype` must be one of {', '.join(DTYPES)}. Received: {dtype!r}")
    return _datasheet_peak(device, dtype) if device.kind == "GPU" else _cpu_peak(dtype, clock)


def _datasheet_peak(device: Device, dtype: str) -> Peak | None:
    row = find_gpu(device.name)
    if row is None:
        return None
    source = f"datasheet: {row.source}"
    if dtype == "float32" and row.teraflops["tensorfloat32"] is not None:
        if tf.config.experimental.tensor_float_32_execution_enabled():
            dtype, source = "tensorfloat32", f"{source} (TensorFloat-32, TensorFlow's default)"
        else:
            source = f"{source} (TensorFloat-32 is turned off)"
    rate = row.flops_per_second(dtype)
    return None if rate is None else Peak(rate, dtype, source)


@functools.cache
def _cpu_peak(dtype: str, clock: Clock) -> Peak:
    with tf.init_scope(), tf.device("CPU:0"):
        return measured_peak(dtype, clock, _multiplier(dtype))


def measured_peak(dtype: str, clock: Clock, multiply: Multiply) -> Peak:
    """The best rate of a few square products.

    Sizes grow while the next is expected to fit into half a second. The first product
    of a size (which makes the operands and the kernel) does not count, the best of the
    others does: a peak is what the chip can do, and everything that disturbs makes it less.
    """
    deadline = clock() + _BUDGET_SECONDS
    best, best_side, expected = 0.0, _SIDES[0], 0.0
    for side in _SIDES:
        # A warm-up and one repetition at least.
        if clock() + 2 * expected > deadline:
            break
        seconds = _best_seconds(side, clock, multiply, deadline)
        rate = 2 * side**3 / seconds
        best, best_side = max((best, best_side), (rate, side))
        expected = 8 * seconds
    return Peak(best, dtype, f"measured: {best_side}x{best_side} matmul in {dtype}")


def _best_seconds(side: int, clock: Clock, multiply: Multiply, deadline: float) -> float:
    multiply(side)
    taken: list[float] = []
    while not taken or (len(taken) < _REPETITIONS and clock() + min(taken) <= deadline):
        start = clock()
        multiply(side)
        taken.append(clock() - start)
    return min(taken)


def _multiplier(dtype: str) -> Multiply:
    operands: dict[int, tf.Tensor] = {}

    def multiply(side: int) -> tf.Tensor:
        # Ones, not random numbers: a CPU's rate does not depend on the values, and the
        # user's random state stays as it is. Products run at once on a CPU.
        if side not in operands:
            operands.clear()
            operands[side] = tf.ones((side, side), dtype)
        return tf.linalg.matmul(operands[side], operands[side])

    return multiply
