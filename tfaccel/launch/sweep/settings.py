"""What a sweep tries: variables that TensorFlow, or the loader, reads as a process starts."""

import dataclasses
import math
import pathlib
import platform
from collections.abc import Iterable, Mapping

from tfaccel.launch.environment import ONEDNN, PRELOAD, has_onednn
from tfaccel.system.cgroup import cpu_quota_cores
from tfaccel.system.cpu import usable_cores

# Read where a program does not set them itself: tensorflow/core/common_runtime/process_util.cc.
WITHIN, BETWEEN = "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"
VARIABLES = (ONEDNN, WITHIN, BETWEEN, PRELOAD)

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
) -> list[Factor]:
    """What is worth a trial here; nothing that the user's environment has set.

    Args:
        environ: the user's environment.
        cores: those that this process may use; None to ask the system.
        root: the root of the file system.
        is_onednn_on: whether the program as it is runs with oneDNN's kernels.
    """
    cores = usable_cores() if cores is None else cores
    other = f"oneDNN {'off' if is_onednn_on else 'on'}"
    onednn = [Setting(other, {ONEDNN: str(int(not is_onednn_on))})] if has_onednn() else []
    threads = _threads(cores, root)
    found = [
        onednn,
        [Setting(f"{_many(n, 'thread')} within an op", {WITHIN: str(n)}) for n in threads],
        [Setting(f"{_many(n, 'op')} at once", {BETWEEN: str(n)}) for n in (1, 2) if n < cores],
        [Setting(name, {PRELOAD: path}) for name, path in _allocators(root)],
    ]
    unset = ([one for one in group if not one.environ.keys() & environ.keys()] for group in found)
    return [tuple(group) for group in unset if group]


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
