"""A pyopencl without a device: it computes nothing, and fails where a test says."""

import importlib.machinery
import sys
import types

import pytest

from tfaccel.ops.kernels._opencl import devices, runtime


class Error(Exception):
    """As pyopencl's own, it has OpenCL's number."""

    def __init__(self, code=-1):
        super().__init__(f"clSomething failed: {code}")
        self.code = code


class LogicError(Error):
    """Of a wrong argument; that there is no platform is one, too."""


class RuntimeError(Error):
    """Such as OUT_OF_RESOURCES."""


class MemoryError(Error):
    """Of an allocation. It has neither the base nor the meaning of Python's."""


class FakeOpenCL(types.ModuleType):
    """Looks like the module; each of its calls is noted, and may fail.

    Args:
        platforms: how many there are; with 0 it is an error to ask for them.
        shares_memory: whether the device has the host's memory.
    """

    def __init__(self, platforms=1, shares_memory=True):
        super().__init__("pyopencl")
        self.__spec__ = importlib.machinery.ModuleSpec("pyopencl", None)
        self.calls, self.failing, self.error = [], None, None
        self._platforms, self._shares_memory = platforms, shares_memory
        self.Error, self.LogicError = Error, LogicError
        self.RuntimeError, self.MemoryError = RuntimeError, MemoryError
        self.device_type = types.SimpleNamespace(CPU=2, GPU=4)
        self.mem_flags = types.SimpleNamespace(READ_ONLY=1, WRITE_ONLY=2, USE_HOST_PTR=4)
        self.map_flags = types.SimpleNamespace(READ=1)
        pool = types.SimpleNamespace(
            allocate=self._call("allocate", object()), free_held=self._call("free_held")
        )
        self.tools = types.SimpleNamespace(
            ImmediateAllocator=self._call("ImmediateAllocator"),
            MemoryPool=self._call("MemoryPool", pool),
        )
        queue = types.SimpleNamespace(finish=self._call("finish"))
        program = types.SimpleNamespace()
        program.build = self._call("build", program)
        kernel = types.SimpleNamespace(set_args=self._call("set_args"))
        release = types.SimpleNamespace(release=self._call("release"))
        mapped = types.SimpleNamespace(base=release), None
        for name, result in {
            "Context": object(),
            "CommandQueue": queue,
            "Program": program,
            "Kernel": kernel,
            "Buffer": object(),
            "enqueue_nd_range_kernel": None,
            "enqueue_map_buffer": mapped,
            "enqueue_copy": None,
        }.items():
            setattr(self, name, self._call(name, result))

    def fail(self, name, error):
        """Has a call raise an error from now on; None: none does."""
        self.failing, self.error = name, error

    def _call(self, name, result=None):
        def call(*args, **kwargs):
            self.calls.append(name)
            if name == self.failing:
                raise self.error
            return result

        return call

    def get_platforms(self):
        self._call("get_platforms")()
        if not self._platforms:
            raise LogicError(-1001)
        device = types.SimpleNamespace(
            name="Fake GPU",
            type=self.device_type.GPU if not self._shares_memory else self.device_type.CPU,
            max_compute_units=8,
            global_mem_size=2**30,
            host_unified_memory=self._shares_memory,
            version="OpenCL 3.0",
            driver_version="1.0",
        )
        get_devices = self._call("get_devices", [device])
        return [types.SimpleNamespace(name="Fake", get_devices=get_devices)] * self._platforms


def forget():
    """Has the devices be looked for anew."""
    for cached in (devices.missing, devices.found, runtime.runtime):
        cached.cache_clear()


@pytest.fixture
def fake_opencl(monkeypatch):
    """Puts a pyopencl in the place of the real one, which need not be installed."""

    def install(**facts):
        module = FakeOpenCL(**facts)
        monkeypatch.setitem(sys.modules, "pyopencl", module)
        forget()
        return module

    yield install
    monkeypatch.undo()
    forget()
