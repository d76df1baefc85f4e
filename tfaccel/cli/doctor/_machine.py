"""doctor's look at the machine: CPU, memory, disk, threads."""

import math
from collections.abc import Iterator

from tfaccel.cli.doctor._finding import Finding, Level, warned
from tfaccel.cli.doctor._surroundings import Surroundings
from tfaccel.measure.units import size
from tfaccel.system.cgroup import cpu_quota_cores, memory_limit_bytes
from tfaccel.system.device import read_cpu
from tfaccel.system.machine import isa, total_memory_bytes
from tfaccel.system.memory import available_bytes, meminfo

# TensorFlow alone takes about half a GiB; with less than this no model trains.
_LEAST_MEMORY_BYTES = 2**30
# A checkpoint of 80 million float32 weights with Adam's two slots.
_LEAST_DISK_BYTES = 2**30


def check_cpu(here: Surroundings) -> Iterator[Finding]:
    """The chip and its instruction sets."""
    cpuinfo = here.root / "proc" / "cpuinfo"
    name, sets = read_cpu(cpuinfo).name, isa(cpuinfo)
    if not sets:
        yield Finding(
            "CPU",
            f"{name}; its instruction sets can't be read on this system",
            Level.NOTE,
            "Go by the speed of products that is measured below.",
        )
    elif not {"avx2", "asimd"} & set(sets):
        yield Finding(
            "CPU",
            f"{name} has no AVX2 ({', '.join(sets)})",
            Level.WARNING,
            "Train on a newer CPU. In a virtual machine: have it pass the host's CPU through.",
        )
    else:
        yield Finding("CPU", f"{name}: {', '.join(sets)}")


def check_memory(here: Surroundings) -> Iterator[Finding]:
    """The memory, what of it is free, and a container's limit."""
    total = meminfo(here.root).get("MemTotal", total_memory_bytes())
    limit, free = memory_limit_bytes(here.root), available_bytes(here.root)
    said = f"{gib(total)} of memory" + ("" if free is None else f", {gib(free)} of it free")
    if limit is not None and (total is None or limit < total):
        said += f"; this process may take {gib(limit)}"
    short = free is not None and free < _LEAST_MEMORY_BYTES
    remedy = "End other programs, or raise the container's limit."
    yield warned("memory", said, remedy, where=short)


def check_disk(here: Surroundings) -> Iterator[Finding]:
    """Room for checkpoints and plans."""
    places = {"the working folder": here.working_directory, "the plan cache": here.cache_directory}
    for place, path in places.items():
        free = here.free_bytes(path)
        said = f"{gib(free)} free for {place} ({path})"
        remedy = "Make room: checkpoints and logs would fail to be written."
        yield warned("disk", said, remedy, where=free < _LEAST_DISK_BYTES)


def check_threads(here: Surroundings) -> Iterator[Finding]:
    """Threads against the cores that the process may use."""
    # Which setting wins: tensorflow/core/common_runtime/local_device.cc.
    within, between = here.tensorflow.threads()
    variable = here.environ.get("TF_NUM_INTRAOP_THREADS", "")
    set_to = within or (int(variable) if variable.isdecimal() else 0)
    threads, quota = set_to or here.cores, cpu_quota_cores(here.root)
    room = math.ceil(min(here.cores, quota or here.cores))
    said = f"{threads} threads within an op" + (f", {between} ops at once" if between else "")
    said += f"; this process may use {here.cores} cores"
    said += "" if quota is None else f", and the time of {quota:g}"
    if threads > room:
        yield Finding(
            "threads",
            f"{said}: threads will wait for each other",
            Level.WARNING,
            f"Set TF_NUM_INTRAOP_THREADS={room}, or call "
            f"tf.config.threading.set_intra_op_parallelism_threads({room}) first.",
        )
    elif threads < room:
        yield Finding(
            "threads",
            f"{said}: some stay idle",
            Level.NOTE,
            "Unset TF_NUM_INTRAOP_THREADS, unless others need the cores.",
        )
    else:
        yield Finding("threads", said)
    yield from _openmp(here)


def _openmp(here: Surroundings) -> Iterator[Finding]:
    count = here.environ.get("OMP_NUM_THREADS")
    if count:
        # Read by builds with OpenMP only: tensorflow/core/common_runtime/process_util.cc.
        yield Finding(
            "threads",
            f"OMP_NUM_THREADS={count} holds for NumPy and scikit-learn; TensorFlow's builds on "
            "PyPI don't read it",
            Level.NOTE,
            "To limit TensorFlow, set TF_NUM_INTRAOP_THREADS.",
        )


def check_load(here: Surroundings) -> Iterator[Finding]:
    """Whether others keep the machine busy, which makes everything measured less sure."""
    load, cores = here.load(), here.machine_cores
    if load is None:
        return
    said = f"{load:.1f} threads wanted to run over the last minute, on {cores} cores"
    # This process has imported TensorFlow in that minute: up to one core's work.
    remedy = "Train, and run this again, when nothing else runs."
    yield warned("load", said, remedy, where=load > cores + 1)


def gib(size_bytes: int | None) -> str:
    """A size in GiB, as text."""
    return "an unknown amount" if size_bytes is None else size(size_bytes)
