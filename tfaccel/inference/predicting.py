"""Keras's `predict` without its loop, for arrays and where nothing else is asked.

For a small batch Keras's data pipeline and callbacks take longer than the model.
"""

import operator
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.workload import default_strategy

# Keras's default `batch_size`.
_BATCH_SIZE = 32
# Arrays of numbers, which Keras feeds as they are or in `floatx`.
_NUMBERS = "fiub"


def is_plain(model: keras.Model, x: Any, batch_size: Any, verbose: Any, *others: Any) -> bool:
    """Whether `predict_arrays` does all that `model.predict` would.

    Args:
        model: whose `predict` is asked for.
        x, batch_size, verbose: as for `model.predict`.
        others: its other arguments, which are None where nothing else is asked.
    """
    if any(other is not None for other in others):
        return False
    sized = isinstance(batch_size, int) and not isinstance(batch_size, bool) and batch_size > 0
    if not (batch_size is None or sized) or verbose not in ("auto", 0, 1, 2):
        return False
    if model.run_eagerly or model.distribute_strategy is not default_strategy():
        return False
    if keras_private.overridden(model, keras.Model, "predict", "make_predict_function"):
        return False
    counts = {_rows(leaf) for leaf in keras.tree.flatten(x)}
    return len(counts) == 1 and counts.pop() > 0


def predict_arrays(
    predict: Callable[[Any], Any], x: Any, batch_size: int | None, verbose: Any
) -> Any:
    """Predicts arrays as `model.predict` does.

    Inputs are cut batch by batch, and outputs are written into one array each, so neither is held
    twice.

    Args:
        predict: takes the inputs of one batch, gives tensors.
        x, batch_size, verbose: as `is_plain` accepts them.
    """
    count, size = _rows(keras.tree.flatten(x)[0]), batch_size or _BATCH_SIZE
    bar = _bar(-(-count // size), verbose)
    outputs: list[_Output] = []
    structure: Any = None
    for place, start in enumerate(range(0, count, size)):
        rows = operator.itemgetter(slice(start, start + size))
        structure = predict(keras.tree.map_structure(rows, x))
        leaves = keras.tree.flatten(structure)
        outputs = outputs or [_Output(count) for _ in leaves]
        for output, leaf in zip(outputs, leaves, strict=True):
            output.add(leaf, min(size, count - start))
        bar(place + 1)
    return keras.tree.pack_sequence_as(structure, [output.whole() for output in outputs])


class _Output:
    """One output for all samples: an array that is filled batch by batch.

    Outputs with another number of rows than the inputs, and outputs that are no plain tensors, are
    joined as Keras joins them.
    """

    def __init__(self, count: int):
        self._count, self._filled = count, 0
        self._room: np.ndarray | None = None
        self._parts: list[Any] = []

    def add(self, leaf: Any, rows: int) -> None:
        """Takes the output for the next so many samples."""
        value: Any = leaf.numpy() if isinstance(leaf, tf.Tensor) else None
        fits = np.ndim(value) > 0 and len(value) == rows
        if fits and not self._parts and self._room is None:
            whole = rows == self._count
            shape = (self._count, *value.shape[1:])
            self._room = value if whole else np.empty(shape, value.dtype)
        if fits and self._room is not None and value.shape[1:] == self._room.shape[1:]:
            if value is not self._room:
                self._room[self._filled : self._filled + rows] = value
        else:
            if self._room is not None:
                self._parts, self._room = [tf.constant(self._room[: self._filled])], None
            self._parts.append(leaf)
        self._filled += rows

    def whole(self) -> Any:
        """The output for all samples, as `predict` gives it."""
        if self._room is not None:
            return self._room
        joined = keras_private.joined_outputs(self._parts)
        return joined.numpy() if isinstance(joined, tf.Tensor) else joined


def _rows(leaf: Any) -> int:
    """How many samples an array has; -1 for types that only Keras can feed."""
    if isinstance(leaf, np.ndarray):
        return len(leaf) if leaf.ndim and leaf.dtype.kind in _NUMBERS else -1
    if not isinstance(leaf, tf.Tensor) or not leaf.shape.rank:
        return -1
    usual = not leaf.dtype.is_floating or leaf.dtype.name == keras.config.floatx()
    return int(leaf.shape[0]) if usual and hasattr(leaf, "numpy") else -1


def _bar(steps: int, verbose: Any) -> Callable[[int], None]:
    """A function that draws Keras's progress bar when it is told how many steps are done."""
    if verbose == 0:
        return lambda done: None
    shown = 1 if verbose == "auto" else verbose
    bar = keras.utils.Progbar(steps, verbose=shown, unit_name="step")

    def draw(done: int) -> None:
        if shown == 1:
            bar.update(done, finalize=False)
        if done == steps:
            bar.update(steps, finalize=True)

    return draw
