"""The cache's place, as text: whoever only asks whether it is there need not load `pathlib`."""

import os


def cache_place() -> str:
    """`$TFACCEL_CACHE_DIR`, else `tfaccel` in `$XDG_CACHE_HOME` or `~/.cache`."""
    chosen = os.environ.get("TFACCEL_CACHE_DIR")
    if chosen:
        return chosen
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return os.path.join(os.path.expanduser(home), "tfaccel")


def sweeps_place(cache: str | os.PathLike[str] | None = None) -> str:
    """Where what `tfaccel run --sweep` found is kept, a file for each program.

    Args:
        cache: the cache's folder; None for `cache_place()`.
    """
    return os.path.join(cache_place() if cache is None else cache, "sweeps")
