"""Folders that others may write to."""

import functools
import os
import pathlib
import stat

from tfaccel.system import notices


@functools.cache
def warn_if_open(folder: pathlib.Path) -> None:
    """Warns once of a folder whose files are trusted, and which other users may write to.

    A group's members are trusted: on many systems each user is a group. So is root.
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
