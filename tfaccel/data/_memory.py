"""How much memory is free."""

import pathlib


def free_bytes(meminfo: pathlib.Path = pathlib.Path("/proc/meminfo")) -> int:
    """Memory that can be taken without swapping; 0 where the system doesn't tell.

    A container's limit is not in it.

    Source: https://docs.kernel.org/filesystems/proc.html (MemAvailable).
    """
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        found = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(found) * 1024
    except (OSError, ValueError, StopIteration):
        return 0
