"""What a stopped fit goes on from: Keras's BackupAndRestore, whose file is always a whole one."""

import os
import pathlib
import tempfile
from typing import Any

import keras

from tfaccel.compat.keras_fits import forget_initial_epoch
from tfaccel.distribute.checkpoints import packed, unpack
from tfaccel.distribute.multi_worker import MultiWorker
from tfaccel.system import notices


class Backup(keras.callbacks.BackupAndRestore):
    """Keeps the fit in one file, which is replaced in one move.

    A worker that is killed while it saves leaves the last whole one. The file stays when the fit
    ends: a program that is started again goes through the fits that were done without a step.

    Args:
        path: the file; written by the chief alone, and read by it for all.
        save_freq: `"epoch"`, or a number of steps for saves between the ends of epochs, too.
        workers: those that train together; None for one process.
    """

    def __init__(self, path: pathlib.Path, save_freq: Any, workers: MultiWorker | None):
        self._folder = tempfile.TemporaryDirectory(prefix="tfaccel-backup-")
        staged = pathlib.Path(self._folder.name, "fit")
        super().__init__(str(staged), save_freq=save_freq, delete_checkpoint=False)
        self._path = path
        self._save_freq = save_freq
        self._writes = workers is None or workers.is_chief
        self._metadata = staged / "training_metadata.json"
        data = path.read_bytes() if self._writes and path.is_file() else b""
        unpack(data if workers is None else workers.share_bytes(data), staged)
        self._seen = self._written()
        self._serves = True

    def on_train_begin(self, logs: Any = None) -> None:
        # Keras leaves the initial epoch on the model, and its next fit would begin there, too.
        forget_initial_epoch(self.model)
        self._serves = bool(self.model.built)
        if self._serves:
            super().on_train_begin(logs)
        else:
            notices.warn(
                "tfaccel: this fit is not kept for a restart, as its model is not built. Give it "
                "a keras.Input"
            )

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._serves and self._save_freq != "epoch":
            super().on_train_batch_end(batch, logs)
            self._publish()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if not self._serves:
            return
        # With a number of steps Keras saves neither at the end of an epoch nor at that of the fit.
        self.save_freq = "epoch"
        try:
            super().on_epoch_end(epoch, logs)
        finally:
            self.save_freq = self._save_freq
        self._publish()

    def on_train_end(self, logs: Any = None) -> None:
        super().on_train_end(logs)
        forget_initial_epoch(self.model)

    def _written(self) -> int:
        return self._metadata.stat().st_mtime_ns if self._metadata.is_file() else 0

    def _publish(self) -> None:
        """Makes what was saved last the whole file, if something was."""
        written = self._written()
        if not self._writes or written == self._seen:
            return
        self._seen = written
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_name(f"{self._path.name}.new")
        with new.open("wb") as file:
            file.write(packed(self._metadata.parent))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
