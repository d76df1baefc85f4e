"""The cache's place, as text: whoever only asks whether it is there need not load `pathlib`."""

import importlib
import os


def cache_place() -> str:
    """`$TFACCEL_CACHE_DIR`, else `tfaccel` in `$XDG_CACHE_HOME` or `~/.cache`.

    Without a home folder it is a temporary one, which goes with the process.
    """
    chosen = os.environ.get("TFACCEL_CACHE_DIR")
    if chosen:
        return os.path.expanduser(chosen)
    if has_home():
        return os.path.join(_home(), "tfaccel")
    # Here and not at the top, as `tfaccel run` need not wait for it.
    place: str = importlib.import_module("tfaccel.system.temporary_place").temporary_place()
    return place


def has_home() -> bool:
    """Whether there is a place that outlives the process, where none is chosen."""
    return not _home().startswith("~")


def _home() -> str:
    """As it was, where the user has no home folder: some containers' users have none."""
    return os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")


def sweeps_place(cache: str | os.PathLike[str] | None = None) -> str:
    """Where what `tfaccel run --sweep` found is kept, a file for each program.

    Args:
        cache: the cache's folder; None for `cache_place()`.
    """
    return os.path.join(cache_place() if cache is None else cache, "sweeps")
