"""What a sweep tries: variables that TensorFlow, or the loader, reads as a process starts."""

import dataclasses
import math
import os
import pathlib
import platform
from collections.abc import Iterable, Mapping

from tfaccel.launch.environment import ONEDNN, PRELOAD, has_onednn
from tfaccel.system.cgroup import cpu_quota_cores
from tfaccel.system.cpu import CPUINFO, cpu_facts, cpu_flags, usable_cores

# Read where a program does not set them itself: tensorflow/core/common_runtime/process_util.cc.
WITHIN, BETWEEN = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
# AMD's plugin, which TensorFlow loads where it is installed, and which takes no part without this:
# https://github.com/amd/ZenDNN-tensorflow-plugin
ZENDNN, ZENDNN_PACKAGE = "TF_ENABLE_ZENDNN_OPTS", "zentf"
# A process is aborted by a flag that its TensorFlow doesn't know: xla/parse_flags_from_env.cc.
XLA_FLAGS = "XLA_FLAGS"
VARIABLES = (ONEDNN, WITHIN, BETWEEN, PRELOAD, ZENDNN, XLA_FLAGS)
# What may go by the TensorFlow that is installed: kept for that alone.
OF_THE_VERSION = (ZENDNN, XLA_FLAGS)
# xla/debug_options_flags.cc; none of them lets XLA compute less exactly.
_XLA = {
    "XLA without its thunk runtime": "--xla_cpu_use_thunk_runtime=false",
    "XLA's concurrent scheduler": "--xla_cpu_enable_concurrency_optimized_scheduler=true",
}
_XLA_WIDE = {"XLA with 512-bit vectors": "--xla_cpu_prefer_vector_width=512"}

_ROOT = pathlib.Path("/")
# Where distributions have shared libraries, below the root.
_FOLDERS = ("usr/lib/*-linux-gnu", "usr/lib64", "usr/lib", "usr/local/lib", "opt/conda/lib")
# By the names that their packages give them; the minimal tcmalloc is the one without a profiler.
_ALLOCATORS = {
    "jemalloc": ("libjemalloc.so.2", "libjemalloc.so"),
    "tcmalloc": ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """Variables, and what to call them.

    Attributes:
        name: as in the table.
        environ: the variables, none for what runs without a sweep.
    """

    name: str
    environ: Mapping[str, str]

    def with_also(self, other: "Setting") -> "Setting":
        """Both settings at once, by the other's name: the table goes from row to row."""
        return Setting(other.name, {**self.environ, **other.environ})


AS_IT_IS = Setting("as it is", {})
# Settings of which one at most holds.
Factor = tuple[Setting, ...]


def factors(
    environ: Mapping[str, str],
    *,
    cores: int | None = None,
    root: pathlib.Path = _ROOT,
    is_onednn_on: bool,
    has_zendnn: bool = False,
) -> list[Factor]:
    """What is worth a trial here; nothing that the user's environment has set.

    Args:
        environ: the user's environment.
        cores: those that this process may use; None to ask the system.
        root: the root of the file system.
        is_onednn_on: whether the program as it is runs with oneDNN's kernels.
        has_zendnn: whether AMD's plugin is installed.
    """
    cores = usable_cores() if cores is None else cores
    other = f"oneDNN {'off' if is_onednn_on else 'on'}"
    onednn = [Setting(other, {ONEDNN: str(int(not is_onednn_on))})] if has_onednn() else []
    if onednn and has_zendnn:
        onednn.append(Setting("ZenDNN", {ZENDNN: "1", ONEDNN: "0"}))
    threads = _threads(cores, root)
    found = [
        onednn,
        [Setting(f"{_many(n, 'thread')} within an op", {WITHIN: str(n)}) for n in threads],
        [Setting(f"{_many(n, 'op')} at once", {BETWEEN: str(n)}) for n in (1, 2) if n < cores],
        [Setting(name, {PRELOAD: path}) for name, path in _allocators(root)],
    ]
    unset = ([one for one in group if not one.environ.keys() & environ.keys()] for group in found)
    return [tuple(group) for group in unset if group]


def xla_factors(
    environ: Mapping[str, str], cpuinfo: str | os.PathLike[str] = CPUINFO, machine: str = ""
) -> list[Factor]:
    """XLA's flags for CPUs that are worth a trial where a program compiles by XLA.

    Args:
        environ: the user's environment; flags of the user's own stay as they are.
        cpuinfo: the kernel's listing.
        machine: as `platform` names it; empty for this one's.
    """
    if XLA_FLAGS in environ:
        return []
    is_wide = "avx512f" in cpu_flags(cpu_facts(cpuinfo)) and has_onednn(machine)
    flags = {**_XLA, **(_XLA_WIDE if is_wide else {})}
    return [tuple(Setting(name, {XLA_FLAGS: words}) for name, words in flags.items())]


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def _threads(cores: int, root: pathlib.Path) -> list[int]:
    """Numbers of threads beside TensorFlow's own, which is that of the cores."""
    quota = cpu_quota_cores(root)
    within = {cores // 2, cores if quota is None else math.ceil(quota)}
    return sorted((n for n in within if 0 < n < cores), reverse=True)


def _allocators(root: pathlib.Path) -> Iterable[tuple[str, str]]:
    """The first library of each allocator that is installed."""
    if platform.system() != "Linux":
        return
    folders = [path for pattern in _FOLDERS for path in sorted(root.glob(pattern))]
    for name, files in _ALLOCATORS.items():
        paths = (folder / file for file in files for folder in folders)
        path = next((path for path in paths if path.is_file()), None)
        if path is not None:
            yield name, str(path)
