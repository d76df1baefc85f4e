"""Where tfaccel keeps files between runs."""

import functools
import os
import pathlib

from tfaccel.system import notices
from tfaccel.system.cache_place import cache_place, has_home, sweeps_place


def default_directory() -> pathlib.Path:
    """The folder of caches (`cache_place`); warns where it is removed when the process ends."""
    place = cache_place()
    if not has_home() and not os.environ.get("TFACCEL_CACHE_DIR"):
        warn_of_no_home(place)
    return pathlib.Path(place)


@functools.cache
def warn_of_no_home(place: str) -> None:
    """Warns, once for each place, that what is learned is removed when the process ends."""
    notices.warn(
        f"tfaccel: there is no home folder, so what is learned is kept in {place}, for this "
        "process alone. Set TFACCEL_CACHE_DIR to a folder of your own to keep it.",
        stacklevel=4,
    )


def directory_at(directory: str | os.PathLike[str] | None) -> pathlib.Path:
    """A folder that the user names; None stands for `default_directory()`."""
    if directory is None:
        return default_directory()
    return pathlib.Path(os.path.expanduser(directory))


def sweeps_directory(cache: pathlib.Path) -> pathlib.Path:
    """Where what `tfaccel run --sweep` found is kept, a file for each program."""
    return pathlib.Path(sweeps_place(cache))


def compiled_directory(cache: pathlib.Path) -> pathlib.Path:
    """Where engines for predictions keep what they compiled, a folder for each."""
    return cache / "compiled"
