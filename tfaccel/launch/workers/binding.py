"""Which cores and GPUs each worker of a machine gets."""

import os
import pathlib
from collections.abc import Mapping, Sequence

from tfaccel.launch.workers.errors import LaunchError
from tfaccel.system.listings import text_of

SYSTEM = pathlib.Path("/sys/devices/system")
NVIDIA = pathlib.Path("/proc/driver/nvidia/gpus")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def allowed_cores() -> set[int]:
    """The logical CPUs that this process may use; none where the system doesn't tell."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set()


def shares_of_cores(
    allowed: set[int], workers: int, system: pathlib.Path = SYSTEM
) -> list[set[int]]:
    """Nearly equal shares of the cores; empty for fewer cores than workers.

    Neighbours share a NUMA node, and the threads of a core stay together where there is a core for
    each worker. So workers have nodes of their own where their numbers allow.

    Args:
        allowed: logical CPUs.
        workers: how many shares.
        system: the kernel's tables.
    """
    nodes = _nodes(system)
    cores: dict[tuple[int, int], list[int]] = {}
    for cpu in sorted(allowed):
        siblings = _listed(system / f"cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.setdefault((nodes.get(cpu, 0), min(siblings, default=cpu)), []).append(cpu)
    ordered = [cores[place] for place in sorted(cores)]
    if len(ordered) < workers:
        ordered = [[cpu] for core in ordered for cpu in core]
    if len(ordered) < workers:
        return []
    return [
        {cpu for core in ordered[slice(*_bounds(len(ordered), i, workers))] for cpu in core}
        for i in range(workers)
    ]


def gpus(environ: Mapping[str, str], nvidia: pathlib.Path = NVIDIA) -> list[str]:
    """The GPUs of this machine, by what CUDA_VISIBLE_DEVICES calls them."""
    told = environ.get(VISIBLE)
    if told is not None:
        found = []
        for word in (each.strip() for each in told.split(",")):
            if not word or word == "-1":  # CUDA reads no further
                break
            found.append(word)
        return found
    count = sum(1 for _ in nvidia.iterdir()) if nvidia.is_dir() else 0
    return [str(index) for index in range(count)]


def shares_of_gpus(found: Sequence[str], workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker; none where there are no GPUs.

    All get the same number, as workers need the same devices. GPUs left over are used by none.

    Raises:
        LaunchError: there are fewer GPUs than workers.
    """
    if not found:
        return []
    each = len(found) // workers
    if not each:
        raise LaunchError(
            f"{workers} workers need a GPU each, and this machine has {len(found)}. Use --workers "
            f"{len(found)}, or {VISIBLE}= for workers without GPUs"
        )
    return [",".join(found[i * each : (i + 1) * each]) for i in range(workers)]


def _nodes(system: pathlib.Path) -> dict[int, int]:
    """The NUMA node of each logical CPU, where the kernel tells."""
    found = {}
    for folder in system.glob("node/node[0-9]*"):
        for cpu in _listed(folder / "cpulist"):
            found[cpu] = int(folder.name.removeprefix("node"))
    return found


def _listed(path: pathlib.Path) -> list[int]:
    """The numbers of a list such as `0-3,8`; none where it can't be read."""
    found: list[int] = []
    for part in text_of(path).strip().split(","):
        first, _, last = part.partition("-")
        if first.isdecimal():
            found += range(int(first), int(last if last.isdecimal() else first) + 1)
    return found


def _bounds(size: int, index: int, of: int) -> tuple[int, int]:
    return size * index // of, size * (index + 1) // of
