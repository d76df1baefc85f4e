"""Batches for a model: random ones, or those of an .npz file."""

import argparse
import dataclasses
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.cli._command import UsageError, positive_int
from tfaccel.cli.inputs.inputs import InputSpec, input_specs, packed, random_inputs, shown
from tfaccel.cli.inputs.labels import check_labels, outputs_with_losses, random_labels
from tfaccel.cli.inputs.models import Chosen
from tfaccel.data.findings import first_line
from tfaccel.data.rules import fits

# Enough that no step sees the batch of the step before.
_BATCHES = 4
_WEIGHT = "sample_weight"
_UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)
_MAKES_ONE = "numpy.savez(path, x=..., y=...) makes one"


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches to train on."""

    dataset: tf.data.Dataset  # batches `(x, y)` or `(x, y, sample_weight)`, without end
    batch_size: int  # samples in each
    source: str  # where they are from, in words


def define_feed_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what to feed."""
    parser.add_argument(
        "--batch_size", type=positive_int, default=32, help="samples in a batch (32)"
    )
    parser.add_argument(
        "--data",
        help="an .npz file with arrays x and y, or x_train and y_train, or named as the model's "
        "inputs and outputs; and sample_weight, if there is one",
    )


def make_feed(chosen: Chosen, args: argparse.Namespace) -> Feed:
    """The samples that the flags ask for: a file's, or random ones that fit the model.

    Raises:
        UsageError: the file, or the model, does not say enough; or they don't fit.
    """
    if args.data is None:
        return random_feed(chosen, args.batch_size)
    return file_feed(chosen, pathlib.Path(args.data), args.batch_size)


def random_feed(chosen: Chosen, batch_size: int) -> Feed:
    """Random samples of the model's input shapes, with labels that fit its loss.

    Raises:
        UsageError: the model does not say what its inputs or labels are like.
    """
    random = np.random.default_rng(0)
    count = _BATCHES * batch_size
    x = random_inputs(chosen, count, random)
    y = random_labels(chosen.model, first_outputs(chosen.model, x), count, random)
    return _feed((x,) if y is None else (x, y), batch_size, "random samples")


def file_feed(chosen: Chosen, path: pathlib.Path, batch_size: int) -> Feed:
    """The first samples of an .npz file.

    Raises:
        UsageError: the file can't be read, or its arrays don't fit the model.
    """
    file = NpzSamples(path)
    x = file.inputs(chosen.model)
    y = file.labels(chosen.model, first_outputs(chosen.model, x))
    weight = file.sample_weight()
    count = len(keras.tree.flatten(x)[0])
    data = (x,) if y is None else (x, y) if weight is None else (x, y, weight)
    first = keras.tree.map_structure(lambda array: array[: _BATCHES * batch_size], data)
    return _feed(first, min(batch_size, count), f"{path} ({count} samples)")


def first_outputs(model: keras.Model, x: Any) -> Any:
    """The model's outputs for the first sample, which show their shapes and structure."""
    first = keras.tree.map_structure(lambda array: tf.convert_to_tensor(array[:1]), x)
    try:
        return model(first)
    except Exception as error:  # whatever a layer of the user's own may raise
        raise UsageError(f"the model does not take the data: {first_line(error)}") from error


def _feed(data: tuple[Any, ...], batch_size: int, source: str) -> Feed:
    # tf.data takes a list for one array.
    samples = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(data))
    return Feed(samples.batch(batch_size).cache().repeat().prefetch(2), batch_size, source)


class NpzSamples:
    """The arrays of an .npz file, by what a model needs them for.

    They are called as `numpy.savez` and Keras's own data sets call them: `x` and `y`,
    or `x_train` and `y_train`; with several inputs or outputs by their names, alone or
    behind `x_` and `y_`, or by their numbers (`x_0`, `x_1`).

    Raises:
        UsageError: it is no .npz file. Whatever is read later may raise it, too.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        try:
            self._file = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise UsageError(f"--data: there is no such file: {path}") from None
        except _UNREADABLE as error:
            # NumPy takes whatever it does not know for a pickle, and says how to load one.
            told = first_line(error) if isinstance(error, OSError) else _MAKES_ONE
            raise UsageError(f"--data: {path} is no .npz file: {told}") from error
        if not isinstance(self._file, np.lib.npyio.NpzFile):
            raise UsageError(f"--data: {path} holds one array; {_MAKES_ONE}")
        self._first: tuple[str, int] | None = None

    def inputs(self, model: keras.Model) -> Any:
        """All samples, in the structure of the model's inputs."""
        specs = input_specs(model) or (None,)
        return packed(model, [self._input(spec, i, len(specs)) for i, spec in enumerate(specs)])

    def labels(self, model: keras.Model, outputs: Any) -> Any:
        """All labels, in the structure of the model's outputs.

        None for a model without a loss, where the file has no labels either.
        """
        if model.loss is None and not any(name.startswith("y") for name in self._file.files):
            return None
        known = list(outputs_with_losses(model, outputs))
        arrays = []
        for index, (name, output, loss) in enumerate(known):
            found, array = self._array("y", name, index, len(known))
            check_labels(self._who(found), array, output, loss)
            arrays.append(array)
        return keras.tree.pack_sequence_as(outputs, arrays)

    def sample_weight(self) -> np.ndarray | None:
        """A weight for each sample, if the file has them."""
        return self._read(_WEIGHT) if _WEIGHT in self._file.files else None

    def _input(self, spec: InputSpec | None, index: int, count: int) -> np.ndarray:
        name = spec.name if spec else "x"
        found, array = self._array("x", name, index, count)
        if spec is not None:
            _check_input(self._who(found), array, spec)
        return array

    def _array(self, letter: str, name: str, index: int, count: int) -> tuple[str, np.ndarray]:
        """The array for one input or output, under the first of its names that the file has."""
        numbered = (name, f"{letter}_{name}", f"{letter}_{index}")
        names = (letter, f"{letter}_train", *numbered) if count == 1 else numbered
        found = next((n for n in names if n in self._file.files), None)
        if found is None:
            what = "input" if letter == "x" else "output"
            raise UsageError(
                f"{self._path} must hold an array for the {what} {name!r}, called "
                f"{' or '.join(dict.fromkeys(names))}. It holds: {', '.join(self._file.files)}"
            )
        return found, self._read(found)

    def _read(self, name: str) -> np.ndarray:
        try:
            array = self._file[name]
        except _UNREADABLE as error:
            raise UsageError(f"{self._who(name)} can't be read: {first_line(error)}") from error
        if not array.ndim or not len(array):
            raise UsageError(
                f"{self._who(name)} must hold at least one sample. Received: {shown(array.shape)}"
            )
        self._first = first, length = self._first or (name, len(array))
        if len(array) != length:
            raise UsageError(
                f"{self._who(name)} must have as many samples as {first!r}, {length}. "
                f"Received: {len(array)}"
            )
        is_double = array.dtype.kind == "f"
        return array.astype(keras.config.floatx(), copy=False) if is_double else array

    def _who(self, name: str) -> str:
        return f"the array {name!r} of {self._path}"


def _check_input(who: str, array: np.ndarray, spec: InputSpec) -> None:
    # Keras adds the last dimension of an input of single numbers.
    sample: Sequence[int] = array.shape[1:]
    if not fits(sample, spec.shape) and not (spec.shape[-1:] == (1,) and sample == ()):
        raise UsageError(
            f"{who} must have the shape {shown((None, *spec.shape))} of the model's input "
            f"{spec.name!r}. Received: {shown(array.shape)}"
        )
    if spec.dtype == "string":
        kinds, rule = "US", "strings"
    elif spec.is_float:
        kinds, rule = "fiub", "numbers"
    else:
        kinds, rule = "iub", "whole numbers"
    if array.dtype.kind not in kinds:
        raise UsageError(f"{who} must hold {rule} ({spec.dtype}). Received: dtype {array.dtype}")
    if spec.vocabulary and not (array.min() >= 0 and array.max() < spec.vocabulary):
        raise UsageError(
            f"{who} must hold indices from 0 to {spec.vocabulary - 1}, as the model's Embedding "
            f"takes. Received: {array.min()} to {array.max()}"
        )
