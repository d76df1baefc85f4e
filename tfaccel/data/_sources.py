"""The kinds of data: arrays, files, and batches one after another."""

import collections
import dataclasses
import functools
import itertools
import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

# Bytes of a chunk: enough that NumPy's calls cost little beside it, and few enough to keep a
# bound in seconds.
_CHUNK_BYTES = 2**24


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Samples in memory, or mapped from disk: arrays of equal length in any structure."""

    structure: Any  # the arrays; lists in it have become tuples
    length: int  # how many samples

    @classmethod
    def of(cls, data: Any) -> "Arrays":
        """Takes NumPy arrays, tensors, and all else that NumPy converts to an array.

        Raises:
            ValueError: the arrays differ in length, or one has no samples in it.
        """
        structure = tf.nest.map_structure(
            lambda leaf: None if leaf is None else _array(leaf), _tuples(data)
        )
        leaves = [leaf for leaf in tf.nest.flatten(structure) if leaf is not None]
        lengths = {len(leaf) if leaf.ndim else None for leaf in leaves}
        if len(lengths) != 1 or None in lengths:
            shapes = ", ".join(str(leaf.shape) for leaf in leaves) or "nothing"
            raise ValueError(
                f"`data` must be arrays with the same number of samples. Received: {shapes}"
            )
        return cls(structure, len(leaves[0]))

    def take(self, rows: Any) -> Any:
        """The samples of some rows, in the same structure."""
        return tf.nest.map_structure(
            lambda leaf: None if leaf is None else leaf[rows], self.structure
        )

    def leaves(self) -> list[np.ndarray]:
        """The arrays."""
        return [leaf for leaf in tf.nest.flatten(self.structure) if leaf is not None]

    @functools.cached_property
    def tensors(self) -> Any:
        """The arrays as tensors in the host's memory, made once."""
        with tf.device("CPU:0"):
            return tf.nest.map_structure(tf.convert_to_tensor, self.structure)

    def chunks(self, indices: np.ndarray) -> Iterator[np.ndarray]:
        """The indices, cut into chunks whose samples take about `_CHUNK_BYTES`."""
        row_bytes = sum(leaf.nbytes for leaf in self.leaves()) // max(1, self.length)
        mixed = any(leaf.dtype.kind == "O" for leaf in self.leaves())
        # The samples of an object array are compared with one another.
        count = max(1, len(indices) if mixed else _CHUNK_BYTES // max(1, row_bytes))
        return (indices[at : at + count] for at in range(0, len(indices), count))


def _array(leaf: Any) -> np.ndarray:
    try:
        array = np.asanyarray(leaf)
    except ValueError:  # samples of different shapes
        array = np.empty(len(leaf), object)
        for row, sample in enumerate(leaf):
            array[row] = sample
    return array


def _tuples(data: Any) -> Any:
    """A tuple stands for several arrays; a list is one, as in tf.data."""
    if isinstance(data, tuple):
        return tuple(map(_tuples, data))
    if isinstance(data, dict):
        return {key: _tuples(value) for key, value in data.items()}
    return _array(data) if isinstance(data, list) else data


def is_arrays(data: Any) -> bool:
    """Whether data is arrays, and not something that gives batches."""
    if isinstance(data, list) and any(map(_is_batch, data)):
        return False
    leaves = keras.tree.flatten(_tuples(data))
    return bool(leaves) and all(
        leaf is None
        or isinstance(leaf, np.ndarray | tf.Tensor | tf.Variable)
        or (hasattr(leaf, "__array__") and hasattr(leaf, "shape"))
        for leaf in leaves
    )


def _is_batch(item: Any) -> bool:
    """Whether an item of a list is a batch, and not one sample of an array."""
    if isinstance(item, tuple):
        return not all(isinstance(part, int | float | np.number) for part in item)
    return isinstance(item, dict | tf.RaggedTensor | tf.SparseTensor)


def is_files(data: Any) -> bool:
    """Whether data is the path of a file or folder, or a list of paths."""
    if isinstance(data, str | os.PathLike):
        return True
    return (
        isinstance(data, list | tuple)
        and bool(data)
        and all(isinstance(item, str | pathlib.PurePath) for item in data)
    )


def as_batches(data: Any) -> Iterable[Any]:
    """Something that gives batches (or samples) one after another.

    Raises:
        TypeError: `data` is of an unknown kind.
    """
    if isinstance(data, tf.data.Dataset):
        return data
    composite = (tf.RaggedTensor, tf.SparseTensor)
    if any(isinstance(leaf, composite) for leaf in keras.tree.flatten(data)) and not (
        isinstance(data, list)
    ):
        return [data]
    if isinstance(data, keras.utils.PyDataset):
        length = data.num_batches
        return map(data.__getitem__, itertools.count() if length is None else range(length))
    if isinstance(data, collections.abc.Iterable) and not isinstance(data, str | bytes):
        return data
    raise TypeError(
        "`data` must be arrays, a tf.data.Dataset, a PyDataset, an iterable of batches, or the "
        f"path of a folder or file. Received: {type(data).__name__}"
    )


def known_length(data: Any) -> float | None:
    """How many elements a dataset gives: None where unknown, `math.inf` without end."""
    if isinstance(data, tf.data.Dataset):
        length = int(data.cardinality())
        if length == tf.data.INFINITE_CARDINALITY:
            return math.inf
        return length if length >= 0 else None
    if isinstance(data, keras.utils.PyDataset):
        return math.inf if data.num_batches is None else int(data.num_batches)
    return None
