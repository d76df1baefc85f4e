"""Where each worker writes its checkpoints, and reads those of the chief."""

import functools
import io
import pathlib
import tarfile
import tempfile

from tfaccel.distribute.multi_worker import MultiWorker


class CheckpointPaths:
    """Paths for callbacks that write: the chief's are real, the others' temporary.

    All workers must write, as saving may reduce values over the workers, but no two of them may
    write to one place. `workers` is None where there is one process only.

    Source: https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras
    """

    def __init__(self, workers: MultiWorker | None):
        self._workers = workers if workers is not None and workers.num_workers > 1 else None

    def filepath(self, path: str) -> str:
        """`path` on the chief; on others a path of the same name that nobody reads."""
        if self._workers is None or self._workers.is_chief:
            return path
        return str(_new_folder() / pathlib.PurePath(path).name)

    def backup_dir(self, path: str) -> str:
        """As `filepath`, for a folder to resume from: it holds what the chief's holds, if anything.

        The chief's files travel through the cluster, so no file system need be shared. All workers
        must call it together.
        """
        if self._workers is None:
            return path
        if self._workers.is_chief:
            self._workers.share_bytes(packed(pathlib.Path(path)))
            return path
        folder = _new_folder() / pathlib.PurePath(path).name
        unpack(self._workers.share_bytes(b""), folder)
        return str(folder)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Kept to the end of the process, when it is removed."""
    return tempfile.TemporaryDirectory(prefix="tfaccel-worker-")


def _new_folder() -> pathlib.Path:
    return pathlib.Path(tempfile.mkdtemp(dir=_scratch().name))


def packed(folder: pathlib.Path) -> bytes:
    """The folder's files as a tar file; empty if there is no such folder."""
    if not folder.is_dir():
        return b""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def unpack(data: bytes, folder: pathlib.Path) -> None:
    """Writes the folder that was packed; nothing where `data` is empty."""
    if not data:
        return
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # Python 3.10 before 3.10.12 has no `filter`; the archive is our own chief's.
        archive.extractall(folder)
