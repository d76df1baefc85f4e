"""Files that tfaccel keeps between runs."""

import contextlib
import os
import pathlib
import tempfile


def default_directory() -> pathlib.Path:
    """`$TFACCEL_CACHE_DIR`, else `tfaccel` in `$XDG_CACHE_HOME` or `~/.cache`."""
    chosen = os.environ.get("TFACCEL_CACHE_DIR")
    if chosen:
        return pathlib.Path(chosen)
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tfaccel"


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file beside its place and moves it there; folders are made.

    A reader sees a whole file or none, and two processes that write at once lose nothing
    but one of two whole files.

    Raises:
        OSError: the file can't be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
