"""Where files are kept by a process whose user has no home folder."""

import atexit
import functools
import os
import shutil
import tempfile


@functools.cache
def temporary_place() -> str:
    """A new folder that nobody else can write to, and that goes with the process."""
    try:
        folder = tempfile.mkdtemp(prefix="tfaccel-")
    except OSError:  # nothing can be written anywhere: then nothing is kept
        return os.path.join(os.devnull, "tfaccel")
    process = os.getpid()

    def remove() -> None:
        if os.getpid() == process:  # and not in a fork of it
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder
