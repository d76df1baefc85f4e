"""The CPU from the kernel's own listing. Nothing here imports TensorFlow."""

import os
import pathlib

from tfaccel.system.listings import text_of

CPUINFO = pathlib.Path("/proc/cpuinfo")


def cpu_facts(cpuinfo: pathlib.Path = CPUINFO) -> dict[str, str]:
    """The listing's entries by key, as the first of the cores has them; empty without a listing."""
    facts: dict[str, str] = {}
    for line in text_of(cpuinfo).splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    return facts


def cpu_flags(facts: dict[str, str]) -> frozenset[str]:
    """The instruction set flags among the entries, of x86 or of ARM."""
    return frozenset((facts.get("flags") or facts.get("Features", "")).split())


def usable_cores() -> int:
    """The cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
