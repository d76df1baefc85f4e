"""Where tfaccel keeps files between runs."""

import functools
import os
import pathlib
import stat

from tfaccel.system import notices


def default_directory() -> pathlib.Path:
    """`$TFACCEL_CACHE_DIR`, else `tfaccel` in `$XDG_CACHE_HOME` or `~/.cache`."""
    chosen = os.environ.get("TFACCEL_CACHE_DIR")
    if chosen:
        return pathlib.Path(chosen)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tfaccel"


def sweeps_directory(cache: pathlib.Path) -> pathlib.Path:
    """Where what `tfaccel run --sweep` found is kept, a file for each program."""
    return cache / "sweeps"


def compiled_directory(cache: pathlib.Path) -> pathlib.Path:
    """Where engines for predictions keep what they compiled, a folder for each."""
    return cache / "compiled"


@functools.cache
def warn_if_open(folder: pathlib.Path) -> None:
    """Warns once of a folder in which anybody may have put what is read as one's own.

    A group's members are trusted: on many systems each user is a group. So is who may write all
    there is.
    """
    try:
        found = folder.stat()
    except OSError:  # none yet
        return
    if os.name != "posix" or not hasattr(os, "geteuid"):
        return
    if found.st_mode & stat.S_IWOTH or found.st_uid not in (0, os.geteuid()):
        notices.warn(
            f"tfaccel reads plans from {folder}, which others may write to: they may slow your "
            "trainings down. Set TFACCEL_CACHE_DIR to a folder of your own, or take the right "
            f"away: chmod o-w {folder}",
            stacklevel=3,
        )
