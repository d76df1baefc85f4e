"""Where tfaccel keeps files between runs."""

import os
import pathlib


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
