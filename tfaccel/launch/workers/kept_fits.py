"""Where the fits of a program are kept for a restart."""

import contextlib
import os
import pathlib


def forget(backup_dir: str | os.PathLike[str]) -> None:
    """Removes what fits of a training that is done have kept; the next one begins anew."""
    folder = pathlib.Path(backup_dir)
    for path in (*folder.glob("fit-*.tar"), *folder.glob("fit-*.tar.new")):
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # other files are in there
        folder.rmdir()


def kept_at(backup_dir: str | os.PathLike[str], fit: int) -> pathlib.Path:
    """Where a program's fit of this number, from 0, is kept."""
    return pathlib.Path(backup_dir, f"fit-{fit}.tar")
