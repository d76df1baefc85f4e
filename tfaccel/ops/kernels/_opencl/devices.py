"""Which OpenCL devices there are, and which one is used."""

import dataclasses
import functools
import importlib.util
from typing import Any

from tfaccel.core.unsupported import Refusal, Unsupported

# What brings a platform: https://wiki.debian.org/OpenCL, https://portablecl.org
_DRIVERS = (
    "install the driver of your GPU (Debian: intel-opencl-icd, mesa-opencl-icd), or for the CPU "
    "`pip install pocl-binary-distribution`"
)
_INSTALL = f"`pip install 'tfaccel[opencl]'`, and {_DRIVERS}"


@dataclasses.dataclass(frozen=True)
class OpenCLDevice:
    """A device of an OpenCL platform.

    Attributes:
        name: as the driver tells it.
        type: `"GPU"`, `"CPU"` or `"accelerator"`.
        compute_units: how many work-groups it runs at once.
        memory_bytes: of its global memory.
        shares_memory: whether that is the host's, so that nothing need be copied.
        platform: whose device it is.
        driver: its version.
    """

    name: str
    type: str
    compute_units: int
    memory_bytes: int
    shares_memory: bool
    platform: str
    driver: str
    handle: Any = dataclasses.field(repr=False, compare=False)  # pyopencl's own


def opencl_devices() -> tuple[OpenCLDevice, ...]:
    """The OpenCL devices of this machine, GPUs first: the first is used.

    Raises:
        RuntimeError: pyopencl is not installed, or there is no OpenCL platform; the message says
            what to install.

    >>> from tfaccel.ops.kernels._opencl.devices import missing
    >>> if missing() is None:
    ...     assert tfaccel.ops.opencl_devices()[0].compute_units >= 1
    """
    cause = missing()
    if cause is not None:
        raise RuntimeError(f"{cause.cause}: {cause.remedy}")
    return found()


@functools.cache
def missing() -> Unsupported | None:
    """Why there is no OpenCL device; None where there is one."""
    if importlib.util.find_spec("pyopencl") is None:
        return Refusal.MISSING("OpenCL needs pyopencl, which is not installed", _INSTALL)
    try:
        devices = found()
    except Exception as error:  # whatever a driver does while it starts
        return Refusal.MISSING(
            f"pyopencl can't be used ({type(error).__name__}: {error})", _INSTALL
        )
    if devices:
        return None
    return Refusal.DEVICE(
        "OpenCL has no platform with a device here, and the extra tfaccel[opencl] brings none",
        _DRIVERS,
    )


def used_device() -> str | None:
    """The device that is used, with its driver; None where there is none."""
    return None if missing() else f"{found()[0].name} {found()[0].driver}"


def has_gpu() -> bool:
    """Whether one of the devices is a GPU."""
    return missing() is None and found()[0].type == "GPU"


@functools.cache
def found() -> tuple[OpenCLDevice, ...]:
    import pyopencl as cl

    try:
        platforms = cl.get_platforms()
    except cl.LogicError:  # that there is none is an error to the loader
        return ()
    found = []
    for platform in platforms:
        try:
            found += [_device(cl, platform, device) for device in platform.get_devices()]
        except cl.Error:  # a platform without devices, or a driver that is broken
            continue
    ranks = ("GPU", "accelerator", "CPU")
    return tuple(sorted(found, key=lambda d: (ranks.index(d.type), -d.compute_units)))


def _device(cl: Any, platform: Any, device: Any) -> OpenCLDevice:
    types = {cl.device_type.GPU: "GPU", cl.device_type.CPU: "CPU"}
    kind = next((name for bit, name in types.items() if device.type & bit), "accelerator")
    return OpenCLDevice(
        name=device.name.strip(),
        type=kind,
        compute_units=device.max_compute_units,
        memory_bytes=device.global_mem_size,
        shares_memory=bool(device.host_unified_memory) or kind == "CPU",
        platform=platform.name.strip(),
        driver=f"{device.version.strip()} {device.driver_version.strip()}",
        handle=device,
    )
