"""The stages of a pipeline, in their order."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.data._sources import Arrays

Map = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a pipeline runs; it gives the same batches in every layout."""

    parallel: bool = False  # whether samples are mapped by several threads
    cached: bool = False  # whether mapped samples are kept in memory after the first pass
    private_threads: int = 0  # threads of the pipeline's own; 0 to share those of the model

    def __str__(self) -> str:
        parts = ["parallel map"] * self.parallel + ["cache"] * self.cached + ["prefetch"]
        return ", ".join(
            parts + [f"{self.private_threads} private threads"] * (self.private_threads > 0)
        )


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A pipeline as the user asked for it."""

    source: Arrays | tf.data.Dataset  # arrays or a dataset
    batch_size: int | None  # None where the source's elements are batches already
    map: Map | None = None  # makes a sample of what the source has; the same each time
    augment: Map | None = None  # changes a sample, differently each time
    shuffle: int = 0  # the buffer's size; 0 for the source's order
    seed: int | None = None  # of the shuffling
    drop_remainder: bool = False  # whether a last, smaller batch is left out
    rows: np.ndarray | None = None  # the samples of the arrays to give; None for all
    screen: Callable[[tf.data.Dataset], tf.data.Dataset] | None = None  # looks at mapped samples

    @property
    def length(self) -> int | None:
        """How many elements the source gives; None where unknown or without end."""
        if isinstance(self.source, Arrays):
            return self.source.length if self.rows is None else len(self.rows)
        length = int(self.source.cardinality())
        return length if length >= 0 else None

    def dataset(self, layout: Layout) -> tf.data.Dataset:
        """The whole pipeline."""
        options = tf.data.Options()
        if layout.private_threads:
            options.threading.private_threadpool_size = layout.private_threads
        return self.batches(layout).prefetch(tf.data.AUTOTUNE).with_options(options)

    def batches(self, layout: Layout) -> tf.data.Dataset:
        """The pipeline without prefetching: a batch is made when it is asked for."""
        made = self._samples(layout)
        if self.augment is not None:
            made = made.map(called(self.augment), **_parallel(layout))
        if self.batch_size is not None and not self.gathers_batches:
            made = made.batch(self.batch_size, drop_remainder=self.drop_remainder)
        return made

    @property
    def gathers_batches(self) -> bool:
        """Whether whole batches are taken from arrays, as no sample is mapped or augmented."""
        plain = self.map is None and self.augment is None
        return plain and isinstance(self.source, Arrays)

    def _samples(self, layout: Layout) -> tf.data.Dataset:
        """Everything before `augment`.

        Shuffling before the map or after the cache gives the same order; before the
        map the buffer holds indices, not samples.
        """
        if isinstance(self.source, tf.data.Dataset):
            made = self.mapped(self.source, layout)
            made = self.screen(made) if self.screen is not None else made
            return self._shuffled(made.cache() if layout.cached else made)
        if layout.cached:
            return self._shuffled(self.mapped(self.indices(), layout).cache())
        indices = self._shuffled(self.indices())
        if self.gathers_batches:
            indices = indices.batch(self.batch_size, drop_remainder=self.drop_remainder)
        return self.mapped(indices, layout)

    def indices(self) -> tf.data.Dataset:
        """The rows of the arrays, in order."""
        if self.rows is not None:
            return tf.data.Dataset.from_tensor_slices(self.rows.astype(np.int64))
        return tf.data.Dataset.range(self.length)

    def mapped(
        self, source: tf.data.Dataset, layout: Layout, *, numbered: bool = False
    ) -> tf.data.Dataset:
        """The samples of `source` (of arrays: of their rows), mapped.

        Args:
            source: the dataset, or rows of the arrays.
            layout: how to map.
            numbered: give pairs of a row and its sample.
        """
        change, how = called(self.map), _parallel(layout)
        if isinstance(self.source, tf.data.Dataset):
            return source if self.map is None else source.map(change, **how)
        take = taker(self.source)

        def sample(rows: tf.Tensor) -> Any:
            made = change(*_arguments(take(rows)))
            return (rows, made) if numbered else made

        return source.map(sample, **how)

    def _shuffled(self, made: tf.data.Dataset) -> tf.data.Dataset:
        return made.shuffle(self.shuffle, seed=self.seed) if self.shuffle else made


def _parallel(layout: Layout) -> dict[str, Any]:
    return (
        {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True} if layout.parallel else {}
    )


def called(function: Map | None) -> Map:
    """A function as tf.data calls it: a tuple's parts are several arguments."""
    if function is None:
        return lambda *parts: parts if len(parts) > 1 else parts[0]
    return function


def _arguments(element: Any) -> tuple[Any, ...]:
    return element if isinstance(element, tuple) else (element,)


def taker(arrays: Arrays) -> Callable[[tf.Tensor], Any]:
    """A function from rows (one, or several) to the arrays' samples, for a graph."""
    mapped = any(isinstance(leaf, np.memmap) for leaf in arrays.leaves())
    if mapped:
        return lambda rows: _read(arrays, rows)
    tensors = arrays.tensors
    return lambda rows: tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), tensors)


def _read(arrays: Arrays, rows: tf.Tensor) -> Any:
    """Reads rows of arrays that are mapped from disk."""
    leaves = arrays.leaves()
    read = tf.numpy_function(
        lambda at: [np.asarray(leaf[at]) for leaf in leaves],
        [rows],
        [leaf.dtype for leaf in leaves],
    )
    for tensor, leaf in zip(read, leaves, strict=True):
        tensor.set_shape([*rows.shape, *leaf.shape[1:]])
    return tf.nest.pack_sequence_as(arrays.structure, read)
