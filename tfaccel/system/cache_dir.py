"""Where tfaccel keeps files between runs."""

import pathlib

from tfaccel.system.cache_place import cache_place, sweeps_place


def default_directory() -> pathlib.Path:
    """Where all of it is (`cache_place`)."""
    return pathlib.Path(cache_place())


def sweeps_directory(cache: pathlib.Path) -> pathlib.Path:
    """Where what `tfaccel run --sweep` found is kept, a file for each program."""
    return pathlib.Path(sweeps_place(cache))


def compiled_directory(cache: pathlib.Path) -> pathlib.Path:
    """Where engines for predictions keep what they compiled, a folder for each."""
    return cache / "compiled"
