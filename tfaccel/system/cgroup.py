"""What a container, or whatever else sets control groups, lets this process have.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max, memory.max),
https://docs.kernel.org/scheduler/sched-bwc.html (version 1).
"""

import pathlib
from collections.abc import Iterator

from tfaccel.system.listings import text_of

# The files with the limit and with what is taken: of version 2, of version 1.
_MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def cpu_quota_cores(root: pathlib.Path) -> float | None:
    """How many cores' worth of time the process may take; None for no limit."""
    shares = []
    for folder in _folders(root, "cpu"):
        quota, period, *_ = [*_words(folder / "cpu.max"), "", ""]
        if not quota:
            quota, *_ = [*_words(folder / "cpu.cfs_quota_us"), ""]
            period, *_ = [*_words(folder / "cpu.cfs_period_us"), ""]
        # No limit is "max" in version 2 and -1 in version 1.
        if quota.isdecimal() and period.isdecimal() and int(period):
            shares.append(int(quota) / int(period))
    return min(shares, default=None)


def memory_limit_bytes(root: pathlib.Path) -> int | None:
    """How much memory the process may take; None for no limit.

    Version 1 has a number near 2**63 for no limit; whoever compares this with the
    machine's memory finds it the larger.
    """
    limits = [
        int(word)
        for folder in _folders(root, "memory")
        for name, _ in _MEMORY_FILES
        for word in _words(folder / name)
        if word.isdecimal()
    ]
    return min(limits, default=None)


def memory_left_bytes(root: pathlib.Path) -> int | None:
    """What may still be taken before a limit is met; None for no limit.

    What the kernel can drop at once (files that nobody has read lately) is not counted as taken.
    """
    left = []
    for folder in _folders(root, "memory"):
        for limit, used in _MEMORY_FILES:
            most, taken = _number(folder / limit), _number(folder / used)
            if most is not None and taken is not None:
                left.append(most - max(0, taken - _droppable(folder)))
    return None if not left else max(0, min(left))


def _droppable(folder: pathlib.Path) -> int:
    lines = text_of(folder / "memory.stat").splitlines()
    entries = dict(line.split() for line in lines if line.count(" ") == 1)
    return int(entries.get("inactive_file", 0))


def _number(path: pathlib.Path) -> int | None:
    """The number in a file; None where there is none, such as `max`."""
    (word, *_) = [*_words(path), ""]
    return int(word) if word.isdecimal() else None


def _folders(root: pathlib.Path, controller: str) -> Iterator[pathlib.Path]:
    """The process's control group and those above it, whose limits hold for it too."""
    mount = root / "sys" / "fs" / "cgroup"
    for line in text_of(root / "proc" / "self" / "cgroup").splitlines():
        # Such as "4:cpu,cpuacct:/path" (version 1) or "0::/path" (version 2).
        names, _, path = line.partition(":")[2].partition(":")
        if names and controller not in names.split(","):
            continue
        top = mount / controller if names else mount
        # In a container the path may be the host's; then only the top is there.
        folder = top / path.lstrip("/")
        yield folder
        while folder != top:
            folder = folder.parent
            yield folder


def _words(path: pathlib.Path) -> list[str]:
    return text_of(path).split()
