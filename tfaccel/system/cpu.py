"""The CPU from the kernel's own listing. Nothing here imports TensorFlow."""

import os

CPUINFO = "/proc/cpuinfo"


def cpu_facts(cpuinfo: str | os.PathLike[str] = CPUINFO) -> dict[str, str]:
    """The listing's entries for the first of the cores, by key; empty without a listing.

    The others are not read: the kernel asks each core for its entries, which takes long with many.
    """
    facts: dict[str, str] = {}
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as listing:
            for line in listing:
                key, colon, value = line.partition(":")
                if colon:
                    facts.setdefault(key.strip(), value.strip())
                elif facts:  # an empty line ends a core's entries
                    break
    except OSError:  # the system has none, or doesn't let it be read
        pass
    return facts


def cpu_flags(facts: dict[str, str]) -> frozenset[str]:
    """The instruction set flags among the entries, of x86 or of ARM."""
    return frozenset((facts.get("flags") or facts.get("Features", "")).split())


def usable_cores() -> int:
    """The cores that this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
