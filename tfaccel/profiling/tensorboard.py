"""Scalars for TensorBoard, where it is installed."""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfaccel.system import notices


class Scalars:
    """Writes the numbers of interval records beside profile.jsonl.

    TensorFlow writes them with the help of the package `tensorboard` (extra
    `tensorboard`), which it brought itself up to 2.20. Without it, or when the disk is
    full, nothing is written and training goes on.
    """

    def __init__(self, log_dir: str | os.PathLike[str]):
        self._writer: Any = None
        if importlib.util.find_spec("tensorboard") is None:
            return
        try:
            self._writer = tf.summary.create_file_writer(os.fspath(log_dir))
        except Exception as error:
            self._stop(error)

    def write(self, record: Mapping[str, Any]) -> None:
        """Writes every number whose key has a slash, at the record's step."""
        if self._writer is None:
            return
        try:
            with self._writer.as_default(step=record["step"]):
                for key, value in record.items():
                    if "/" in key and value is not None:
                        tf.summary.scalar(key, value)
            self._writer.flush()
        except Exception as error:
            self._stop(error)

    def close(self) -> None:
        """Ends the file."""
        if self._writer is not None:
            try:
                self._writer.close()
            except Exception as error:
                self._stop(error)

    def _stop(self, error: Exception) -> None:
        self._writer = None
        notices.warn(f"tfaccel writes no more to TensorBoard: {error}", RuntimeWarning, 2)
