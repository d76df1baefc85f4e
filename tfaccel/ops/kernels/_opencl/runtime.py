"""Runs OpenCL programs on NumPy arrays."""

import contextlib
import functools
import importlib.resources
import math
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tfaccel.ops.kernels._opencl.devices import OpenCLDevice, opencl_devices
from tfaccel.system.cache_dir import default_directory

_SOURCE = "products.cl"
# Results begin at a page and are whole lines of a cache, as Intel's GPUs ask for where they are to
# write in place. TensorFlow takes them over without a copy (EIGEN_MAX_ALIGN_BYTES is less).
_PAGE_BYTES, _LINE_BYTES = 4096, 64
# OpenCL's numbers of what too large a call meets: MEM_OBJECT_ALLOCATION_FAILURE, OUT_OF_RESOURCES,
# OUT_OF_HOST_MEMORY and INVALID_BUFFER_SIZE. pyopencl has a class of its own for the first alone.
_FULL = (-4, -5, -6, -61)


def is_full(error: Exception) -> bool:
    """Whether the device had no room for a call, so that a smaller or a later one may be served."""
    return isinstance(error, MemoryError) or getattr(error, "code", None) in _FULL


class Runtime:
    """One device: its queue, its programs and the memory that is used again.

    Args:
        device: where to run.
    """

    def __init__(self, device: OpenCLDevice):
        import pyopencl as cl

        self.device = device
        self.cl = cl
        self._context = cl.Context([device.handle])
        self._queue = cl.CommandQueue(self._context)
        self.pool = cl.tools.MemoryPool(cl.tools.ImmediateAllocator(self._queue))
        self._programs: dict[str, Any] = {}
        self._kernels: dict[tuple[str, str], Any] = {}
        # A kernel's arguments are set before it is queued, and TensorFlow calls from any thread.
        self._lock = threading.Lock()

    def run(
        self,
        name: str,
        options: str,
        operands: Sequence[np.ndarray],
        shape: Sequence[int],
        call: np.ndarray,
        items: Sequence[int],
        group: tuple[int, ...] | None,
    ) -> np.ndarray:
        """Runs a kernel over operands, and gives what it made.

        Args:
            name: the kernel's.
            options: what its program is compiled with.
            operands: arrays of one dtype, in C order.
            shape: the result's.
            call: the kernel's last argument, a structure of ints.
            items, group: how many work items, and how many of them a group, by dimension; None
                leaves the groups to the driver.
        """

        def begin(queue: Any, buffers: Sequence[Any]) -> None:
            kernel = self._kernel(name, options)
            kernel.set_args(*buffers, call)
            self.cl.enqueue_nd_range_kernel(queue, kernel, tuple(items), group)

        return self.computed(operands, shape, begin)

    def computed(
        self,
        operands: Sequence[np.ndarray],
        shape: Sequence[int],
        begin: Callable[[Any, Sequence[Any]], None],
    ) -> np.ndarray:
        """What is made of operands by what `begin` puts into the queue.

        Args:
            operands: arrays of one dtype, in C order.
            shape: the result's.
            begin: is handed the queue, and buffers of the operands and of the result.
        """
        with self._lock:
            made, pages = in_pages(shape, operands[0].dtype)
            try:
                buffers = [*map(self._input, operands), self._output(pages)]
                begin(self._queue, buffers)
                self._finish(buffers[-1], made)
            except Exception:
                self._settle()
                raise
            return made

    def _settle(self) -> None:
        """Waits for what was begun, as it may still write to the arrays, and makes room."""
        for step in (self._queue.finish, self.pool.free_held):
            with contextlib.suppress(Exception):
                step()

    def _kernel(self, name: str, options: str) -> Any:
        found = self._kernels.get((name, options))
        if found is None:
            found = self.cl.Kernel(self._program(options), name)
            self._kernels[name, options] = found
        return found

    def _program(self, options: str) -> Any:
        found = self._programs.get(options)
        if found is None:
            # pyopencl keeps what it built, by source, options, device and driver; PoCL by itself.
            text = importlib.resources.files(__package__).joinpath(_SOURCE).read_text("utf-8")
            program = self.cl.Program(self._context, text)
            found = program.build(f"-cl-mad-enable {options}", cache_dir=_cache_dir())
            self._programs[options] = found
        return found

    def _input(self, array: np.ndarray) -> Any:
        flags = self.cl.mem_flags
        if self.device.shares_memory:
            if array.ctypes.data % _LINE_BYTES:
                # Kernels may load vectors of as many bytes: PoCL crashes where these are unaligned.
                array, unaligned = in_pages(array.shape, array.dtype)[0], array
                array[...] = unaligned
            return self.cl.Buffer(
                self._context, flags.READ_ONLY | flags.USE_HOST_PTR, hostbuf=array
            )
        buffer = self.pool.allocate(array.nbytes)
        self.cl.enqueue_copy(self._queue, buffer, array, is_blocking=False)
        return buffer

    def _output(self, pages: np.ndarray) -> Any:
        flags = self.cl.mem_flags
        if self.device.shares_memory:
            return self.cl.Buffer(
                self._context, flags.WRITE_ONLY | flags.USE_HOST_PTR, hostbuf=pages
            )
        return self.pool.allocate(pages.nbytes)

    def _finish(self, out: Any, made: np.ndarray) -> None:
        """Waits until the result is in the host's memory."""
        if not self.device.shares_memory:
            self.cl.enqueue_copy(self._queue, made, out)
            return
        # The host sees what is written there once it is mapped.
        mapped, _ = self.cl.enqueue_map_buffer(
            self._queue, out, self.cl.map_flags.READ, 0, made.shape, made.dtype
        )
        mapped.base.release(self._queue)
        self._queue.finish()


@functools.cache
def runtime() -> Runtime:
    """That of the device that is used; RuntimeError where there is none."""
    return Runtime(opencl_devices()[0])


def _cache_dir() -> str | bool:
    """Where pyopencl keeps programs; False, which is nowhere, where nothing can be written."""
    folder = default_directory() / "opencl"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return str(folder) if os.access(folder, os.W_OK) else False


def in_pages(shape: Sequence[int], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """An array for a result, and the bytes that it begins at."""
    size = math.prod(shape) * dtype.itemsize
    whole = -(-size // _LINE_BYTES) * _LINE_BYTES
    raw = np.empty(whole + _PAGE_BYTES, np.uint8)
    pages = raw[-raw.ctypes.data % _PAGE_BYTES :][:whole]
    return pages[:size].view(dtype).reshape(tuple(shape)), pages
