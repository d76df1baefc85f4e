"""Memory: whether an error says that it ran out, and how much a piece of work takes."""

import contextlib
import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Protocol

import tensorflow as tf

from tfaccel.system.cgroup import memory_left_bytes
from tfaccel.system.device import Device
from tfaccel.system.listings import text_of

# What other errors than ResourceExhaustedError say when a GPU's memory is full: cuDNN's
# and cuBLAS's handles and workspaces, CUDA graphs, and copies to the device.
_OUT_OF_MEMORY = (
    "out of memory",
    "OUT_OF_MEMORY",
    "RESOURCE_EXHAUSTED",
    "failed to allocate",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    # https://github.com/tensorflow/tensorflow/issues/19308: a copy to a full GPU.
    "Dst tensor is not initialized",
)
ROOT = pathlib.Path("/")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, the device's or the host's.

    >>> is_out_of_memory(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"))
    True
    >>> is_out_of_memory(ValueError("out of memory"))
    False
    """
    if isinstance(error, tf.errors.ResourceExhaustedError | MemoryError):
        return True
    told = isinstance(
        error, tf.errors.InternalError | tf.errors.UnknownError | tf.errors.AbortedError
    )
    return told and any(words in str(error) for words in _OUT_OF_MEMORY)


@dataclasses.dataclass
class Peak:
    """The most memory that a piece of work took, in bytes; None until the work has ended."""

    bytes: int | None = None


class Meter(Protocol):
    """Measures how much memory a piece of work takes."""

    def measured(self) -> contextlib.AbstractContextManager[Peak]:
        """A context whose `Peak` has its bytes when it is left."""

    def available_bytes(self) -> int | None:
        """What is still free; None where that can't be told."""


class GpuMeter:
    """The peak of TensorFlow's own allocator on the first GPU, weights included.

    Source: https://www.tensorflow.org/api_docs/python/tf/config/experimental/get_memory_info
    """

    @contextlib.contextmanager
    def measured(self) -> Iterator[Peak]:
        peak = Peak()
        tf.config.experimental.reset_memory_stats("GPU:0")
        try:
            yield peak
        finally:
            peak.bytes = int(tf.config.experimental.get_memory_info("GPU:0")["peak"])

    def available_bytes(self) -> int | None:
        return None  # TensorFlow tells no limit; running into it is an error that can be met


class ProcessMeter:
    """How far this process's memory grows above what it is when the meter is made.

    Linux keeps the highest resident size, and forgets it when asked to (which resets the
    process's own record of it, `VmHWM`, and nothing else). OSError where the system does not
    tell.

    Source: https://docs.kernel.org/filesystems/proc.html (status, clear_refs)
    """

    def __init__(self, root: pathlib.Path = ROOT):
        self._root = root
        self._process = root / "proc" / "self"
        self._forget_peak()
        self._base = self._status("VmRSS")

    @contextlib.contextmanager
    def measured(self) -> Iterator[Peak]:
        peak = Peak()
        self._forget_peak()
        try:
            yield peak
        finally:
            peak.bytes = max(0, self._status("VmHWM") - self._base)

    def available_bytes(self) -> int | None:
        return available_bytes(self._root)

    def _forget_peak(self) -> None:
        (self._process / "clear_refs").write_text("5", encoding="ascii")

    def _status(self, name: str) -> int:
        sizes = _sizes(self._process / "status")
        if name not in sizes:
            raise OSError(f"{self._process / 'status'} has no {name}")
        return sizes[name]


def meter_for(device: Device) -> Meter:
    """The meter for a device; OSError where a process's memory can't be measured on this system."""
    return GpuMeter() if device.kind == "GPU" else ProcessMeter()


def available_bytes(root: pathlib.Path = ROOT) -> int | None:
    """What can still be taken without swapping: of the machine, or of what a container may have.

    The one place that says how much memory is free. None where the system doesn't tell.

    Source: https://docs.kernel.org/filesystems/proc.html (MemAvailable)
    """
    found = [meminfo(root).get("MemAvailable"), memory_left_bytes(root)]
    return min((size for size in found if size is not None), default=None)


def process_bytes(root: pathlib.Path = ROOT) -> int | None:
    """What this process holds in memory now; None where the system doesn't tell.

    Source: https://docs.kernel.org/filesystems/proc.html (status, VmRSS)
    """
    return _sizes(root / "proc" / "self" / "status").get("VmRSS")


def meminfo(root: pathlib.Path = ROOT) -> dict[str, int]:
    """The kernel's listing of the machine's memory, in bytes; empty where there is none."""
    return _sizes(root / "proc" / "meminfo")


def _sizes(path: pathlib.Path) -> dict[str, int]:
    """The entries such as `VmRSS:   1234 kB` of a file, in bytes."""
    found = re.findall(r"(?m)^(\w+):\s+(\d+) kB$", text_of(path))
    return {name: 1024 * int(kib) for name, kib in found}
