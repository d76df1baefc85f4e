"""Saving what makes the predictions."""

import os
import pathlib
import shutil
import tempfile
from typing import Any

import keras

from tfaccel.autotune.report import Report
from tfaccel.inference.engines import ServedFunction, WordsFunction
from tfaccel.inference.predict_function import PredictFunction
from tfaccel.inference.saving.manifest import MANIFEST, WORDS, Between, Manifest
from tfaccel.inference.saving.saved_model import write_forward, write_saved_model


def save(
    model: keras.Model,
    function: PredictFunction | ServedFunction | None,
    sample: Any,
    report: Report,
    folder: str | os.PathLike[str],
) -> int:
    """Writes a folder for `load` and for programs without tfaccel.

    It is written beside its place and moved there, so a folder is whole or absent.

    Args:
        model: the model.
        function: makes the predictions; None for the model's own function.
        sample: inputs.
        report: what was tried, and what it won.
        folder: a new one, an empty one, or one that was written by this before.

    Returns:
        How many bytes were written.

    Raises:
        ValueError: the folder holds other files, or the model has inputs or outputs that can't
            be saved; the message says which.
        OSError: it can't be written.
    """
    place = pathlib.Path(folder)
    check_free(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as beside:
        written = pathlib.Path(beside) / "written"
        written.mkdir()
        between = None
        if isinstance(function, WordsFunction):
            between = _write_words(function, written)
        if isinstance(function, ServedFunction):
            served = function.served()
            served.runner.save(written)
            signature = served.signature
        else:
            signature = write_saved_model(model, function, sample, written)
        found = Manifest.of(written, model.name, report, sample, signature, between)
        found.write(written)
        if place.exists():
            shutil.rmtree(place)
        written.rename(place)
    return bytes_of(place)


def _write_words(function: WordsFunction, folder: pathlib.Path) -> Between:
    """Writes the part that turns strings into numbers; returns the tensors that it hands on."""
    forward, inner = function.words(), function.rest.signature
    operations = dict.fromkeys(node.operation for node in function.split.head)
    layers = [one for one in operations if isinstance(one, keras.Layer)]
    write_forward(forward, layers, folder / WORDS)
    return Between(tuple(forward.output_names), inner.inputs, inner.sizes)


def bytes_of(folder: pathlib.Path) -> int:
    """The bytes of all files of a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def check_free(folder: pathlib.Path) -> None:
    """Raises ValueError where a folder is in use for something else."""
    if folder.is_dir() and ((folder / MANIFEST).is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        what = "a folder with other files" if folder.is_dir() else "a file"
        raise ValueError(f"`folder` must be a new folder. Received: {folder}, {what}")
