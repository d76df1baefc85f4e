"""The machine and installation that doctor looks at; tests replace them by others."""

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat.lacking import lacking
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.measure.timing import Clock
from tfaccel.ops.kernels import (
    OpenCLDevice,
    OpenCLVariant,
    Ranking,
    Store,
    opencl_devices,
    opencl_variant,
)
from tfaccel.system.cache_dir import default_directory
from tfaccel.system.machine import Gpu, Run, run_program, tensorflow_gpus

# Edges of the square matrices that products are timed with: large enough that the
# products, and not their calls, are timed; small enough for a second in all.
SIZES: Mapping[str, int] = {"CPU": 1024, "GPU": 4096}


class Packages:
    """The Python packages that are installed."""

    def version(self, name: str) -> str | None:
        """A package's version; None if it isn't installed."""
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return None

    def requires(self, name: str) -> Sequence[str]:
        """What a package says that it requires; nothing if it isn't installed."""
        try:
            return importlib.metadata.requires(name) or ()
        except importlib.metadata.PackageNotFoundError:
            return ()


class TensorFlow:
    """What the running TensorFlow and Keras say of themselves."""

    def versions(self) -> dict[str, str]:
        """The versions that run, which may not be the ones that pip lists."""
        return {
            "Python": platform.python_version(),
            "TensorFlow": tf.__version__,
            "Keras": keras.__version__,
            "NumPy": np.__version__,
        }

    def keras_config(self) -> dict[str, str]:
        """Keras's backend, floatx and image data format."""
        return {
            "backend": keras.backend.backend(),
            "floatx": keras.config.floatx(),
            "image_data_format": keras.config.image_data_format(),
        }

    def build(self) -> Mapping[str, Any]:
        """How TensorFlow was built: `is_cuda_build`, `cuda_version`, ..."""
        return tf.sysconfig.get_build_info()

    def onednn(self) -> bool | None:
        """Whether oneDNN's kernels are used; None if TensorFlow doesn't tell."""
        return onednn_is_on()

    def lacks(self) -> Mapping[str, str]:
        """What these versions lack of the API that tfaccel uses, and what it serves."""
        return lacking()

    def threads(self) -> tuple[int, int]:
        """Threads within an op and between ops, as set in this process; 0: not set."""
        threading = tf.config.threading
        return (
            threading.get_intra_op_parallelism_threads(),
            threading.get_inter_op_parallelism_threads(),
        )

    def gpus(self) -> tuple[Gpu, ...]:
        """The GPUs that TensorFlow sees."""
        return tensorflow_gpus()

    def memory_grows(self) -> bool:
        """Whether GPU memory is taken as it is needed, and not all at once."""
        gpus = tf.config.list_physical_devices("GPU")
        return all(tf.config.experimental.get_memory_growth(gpu) for gpu in gpus)

    def devices(self) -> tuple[str, ...]:
        """Starts the devices, such that no more memory is taken than is needed."""
        for gpu in tf.config.list_physical_devices("GPU"):
            # Raised where TensorFlow has started: the memory is taken already then.
            with contextlib.suppress(RuntimeError):
                tf.config.experimental.set_memory_growth(gpu, True)
        kinds = ("CPU", "GPU")
        return tuple(d.name for kind in kinds for d in tf.config.list_logical_devices(kind))


def usable_cores() -> int:
    """The cores that the process may use, by its affinity."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def existing(path: pathlib.Path) -> pathlib.Path:
    """The path, or the nearest folder above it that exists."""
    return next((p for p in (path, *path.parents) if p.exists()), path)


def _free_bytes(path: pathlib.Path) -> int:
    return shutil.disk_usage(existing(path)).free


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):  # Windows has none
        return None


def _rankings(folder: pathlib.Path) -> Sequence[Ranking]:
    return Store.at(folder).rankings()


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """The machine and the installation."""

    root: pathlib.Path = pathlib.Path("/")  # where `proc`, `sys` and `dev` are
    # The environment's variables.
    environ: Mapping[str, str] = dataclasses.field(default_factory=lambda: os.environ)
    # What is installed.
    packages: Packages = Packages()  # noqa: RUF009 (it holds nothing)
    # What TensorFlow says.
    tensorflow: TensorFlow = TensorFlow()  # noqa: RUF009 (it holds nothing)
    # The OpenCL devices; RuntimeError where there are none.
    opencl_devices: Callable[[], tuple[OpenCLDevice, ...]] = opencl_devices
    # How an OpenCL device computes products; None where that was not measured yet.
    opencl_variant: Callable[[OpenCLDevice], OpenCLVariant | None] = opencl_variant
    # What was measured of kernels, as kept in a folder.
    rankings: Callable[[pathlib.Path], Sequence[Ranking]] = _rankings
    run: Run = run_program  # runs a program and gives its output, or None
    cores: int = dataclasses.field(default_factory=usable_cores)  # how many the process may use
    # How many there are.
    machine_cores: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    # How many threads wanted to run, over the last minute; None if unknown.
    load: Callable[[], float | None] = _load
    free_bytes: Callable[[pathlib.Path], int] = _free_bytes  # room on the disk that a path is on
    # Where plans are kept.
    cache_directory: pathlib.Path = dataclasses.field(default_factory=default_directory)
    # Where the user works.
    working_directory: pathlib.Path = dataclasses.field(default_factory=pathlib.Path.cwd)
    # Edges of the matrices that are multiplied, on a CPU and on a GPU.
    sizes: Mapping[str, int] = dataclasses.field(default_factory=lambda: SIZES)
    clock: Clock = time.perf_counter  # seconds
