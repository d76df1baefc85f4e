"""The machine that something was measured on: facts that go into JSON."""

import dataclasses
import os
import pathlib
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import keras
import numpy as np
import tensorflow as tf

from tfaccel.system.cpu import CPUINFO
from tfaccel.system.device import read_cpu
from tfaccel.system.listings import text_of

# Instruction sets that TensorFlow's libraries choose their kernels by. x86:
# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html; ARM:
# https://docs.kernel.org/arch/arm64/elf_hwcaps.html
ISA = (
    *("avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "avx10_2"),
    *("asimd", "asimddp", "asimdhp", "sve", "sve2", "i8mm", "bf16", "sme"),
)
# nvidia-smi takes a second or two where it has to start the driver first.
_PROGRAM_SECONDS = 10.0
_SMI = (
    "nvidia-smi",
    "--query-gpu=name,memory.total,driver_version",
    "--format=csv,noheader,nounits",
)
_DRIVER_VERSION = re.compile(r"\b\d{3,}\.\d+(?:\.\d+)?\b")

Run = Callable[[Sequence[str]], str | None]
_T = TypeVar("_T")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU: the chip's name, NVIDIA's (major, minor), all memory; None for what isn't known."""

    name: str
    compute_capability: tuple[int, int] | None = None
    memory_bytes: int | None = None


@dataclasses.dataclass(frozen=True)
class NvidiaDriver:
    """NVIDIA's driver, and the GPUs that it serves, whether TensorFlow can use them or not.

    They are `reachable` if this process may use them. A container that was started without GPUs
    sees the driver and has no device files.
    """

    version: str | None
    gpus: tuple[Gpu, ...]
    reachable: bool


def machine_facts(
    cpuinfo: str | os.PathLike[str] = CPUINFO, run: Run | None = None
) -> dict[str, Any]:
    """What numbers were measured on, as values that JSON can hold. Never raises.

    `cpu`, `cores` (those that this process may use), `isa`, `memory_bytes`, `gpus` (a list of
    `name`, `compute_capability`, `memory_bytes`), `system`, `python`, `tensorflow`, `keras`,
    `numpy`. What can't be found out is None, or empty for a list. `run` runs a program and gives
    its output; None for `run_program`.

    >>> from tfaccel.system.machine import machine_facts
    >>> machine_facts()["keras"] == keras.__version__
    True
    """
    cpu = _or_none(lambda: read_cpu(cpuinfo))
    gpus = _or_none(lambda: with_memory(tensorflow_gpus(), run or run_program)) or ()
    return {
        "cpu": cpu.name if cpu else None,
        "cores": cpu.cores if cpu else None,
        "isa": _or_none(lambda: isa(cpuinfo)) or [],
        "memory_bytes": total_memory_bytes(),
        "gpus": [_gpu_facts(gpu) for gpu in gpus],
        "system": _or_none(platform.platform),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "numpy": np.__version__,
    }


def isa(cpuinfo: str | os.PathLike[str] = CPUINFO) -> list[str]:
    """Those of the CPU's instruction sets that matter here, in the order of `ISA`.

    Empty where they can't be read.
    """
    flags = read_cpu(cpuinfo).flags
    return [flag for flag in ISA if flag in flags]


def total_memory_bytes() -> int | None:
    """The machine's memory; None where the system doesn't tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return None


def tensorflow_gpus() -> tuple[Gpu, ...]:
    """The GPUs that TensorFlow sees. They are not started, so nothing is allocated."""
    details = [
        tf.config.experimental.get_device_details(device)
        for device in tf.config.list_physical_devices("GPU")
    ]
    return tuple(
        Gpu(found.get("device_name", "unknown GPU"), found.get("compute_capability"))
        for found in details
    )


def with_memory(gpus: tuple[Gpu, ...], run: Run) -> tuple[Gpu, ...]:
    """The GPUs with their memory, which TensorFlow tells only of a GPU that it has started.

    nvidia-smi counts GPUs in another order than CUDA does, so they are matched by
    name. A name that stands for two sizes of memory stays without one.
    """
    sizes: dict[str, set[int | None]] = {}
    for known in _smi_gpus(run)[1] if gpus else ():
        sizes.setdefault(known.name, set()).add(known.memory_bytes)
    return tuple(
        dataclasses.replace(gpu, memory_bytes=next(iter(found)))
        if len(found := sizes.get(gpu.name, set())) == 1
        else gpu
        for gpu in gpus
    )


def nvidia_driver(root: pathlib.Path, run: Run) -> NvidiaDriver | None:
    """NVIDIA's driver by nvidia-smi, else by the kernel's listing below `root`; None without.

    Source: https://download.nvidia.com/XFree86/Linux-x86_64/550.54.15/README/procinterface.html
    """
    version, gpus = _smi_gpus(run)
    if gpus:
        return NvidiaDriver(version, gpus, reachable=True)
    folder = root / "proc" / "driver" / "nvidia"
    files = sorted((root / "dev").glob("nvidia[0-9]*"))
    listed = tuple(
        Gpu(found[1].strip())
        for path in sorted((folder / "gpus").glob("*/information"))
        if (found := re.search(r"^Model:(.*)$", text_of(path), flags=re.MULTILINE))
    )
    if not (listed or files):
        return None
    stated = _DRIVER_VERSION.search(text_of(folder / "version"))
    unnamed = tuple(Gpu("NVIDIA GPU") for _ in files)
    return NvidiaDriver(stated[0] if stated else None, listed or unnamed, reachable=bool(files))


def _smi_gpus(run: Run) -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver's version and the GPUs, from nvidia-smi."""
    rows = [[cell.strip() for cell in line.split(",")] for line in (run(_SMI) or "").splitlines()]
    rows = [row for row in rows if len(row) == 3]
    # Memory is given in MiB, or as a word where there is none to tell.
    gpus = (Gpu(name, None, int(m) * 2**20 if m.isdecimal() else None) for name, m, _ in rows)
    return (rows[0][2] if rows else None), tuple(gpus)


def run_program(words: Sequence[str]) -> str | None:
    """A program's output; None if it isn't there, fails, or takes longer than 10 s."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=_PROGRAM_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _gpu_facts(gpu: Gpu) -> dict[str, Any]:
    facts = dataclasses.asdict(gpu)
    # A tuple would come back from JSON as a list, and not be equal.
    return facts | {"compute_capability": gpu.compute_capability and [*gpu.compute_capability]}


def _or_none(read: Callable[[], _T]) -> _T | None:
    """What `read` gives. A fact that can't be had must not end the training that asks for it."""
    try:
        return read()
    except Exception:
        return None
