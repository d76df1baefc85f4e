"""Counts the sizes that XLA compiles parts of a step for."""

import contextlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

# Sizes that a step may be compiled for. Most trainings have two (the last batch of an epoch is
# a smaller one). XLA takes a tenth of a second a size for a loop, and minutes for a large step.
MOST_SIZES = 4
_NOTHING = 0  # marks a free place of the table


class Sizes:
    """The combinations of sizes that one step has met, counted while it runs.

    `count` is how many there were; no more than one beyond `MOST_SIZES` is counted.
    """

    def __init__(self) -> None:
        # As many places as are counted: a size that comes back is found again.
        self._seen = tf.Variable([_NOTHING] * (MOST_SIZES + 1), dtype=tf.int64, trainable=False)
        self.count = tf.Variable(0, dtype=tf.int64, trainable=False)

    def too_many(self) -> bool:
        """Whether there were more sizes than are worth compiling for."""
        return int(self.count.numpy()) > MOST_SIZES

    def note(self, shapes: list[tf.Tensor]) -> None:
        """Counts the sizes of one step (int64 vectors: the shapes that count), if they are new."""
        if not shapes:
            return
        sizes = tf.concat(shapes, 0)
        digest = _digest(sizes)

        def add() -> None:
            place = tf.minimum(self.count, MOST_SIZES)
            self._seen.scatter_nd_update(place[None, None], digest[None])
            self.count.assign(place + 1)

        tf.cond(tf.reduce_any(tf.equal(self._seen, digest)), lambda: None, add)


def _digest(sizes: tf.Tensor) -> tf.Tensor:
    """One number for a vector of sizes, which no other vector is expected to have."""
    factors = np.random.default_rng(0).integers(1, 2**62, sizes.shape[0]) * 2 + 1
    return tf.reduce_sum((sizes + 1) * tf.constant(factors, tf.int64))


class Compiled:
    """The tensors for whose sizes one trace is compiled.

    `shapes` are those of its tensors that are not known while tracing. `inside` is whether there
    are more in graphs inside this one (a loop, a part that is recomputed), whose tensors can't be
    read out here.
    """

    def __init__(self) -> None:
        self._graph = tf.compat.v1.get_default_graph()
        self.shapes: list[tf.Tensor] = []
        self.inside = False

    def note(self, tensor: tf.Tensor) -> None:
        """Notes that something is compiled for the size of a tensor."""
        if self._graph is tf.compat.v1.get_default_graph():
            self.shapes.extend(shape_of(tensor))
        else:
            self.inside = True


_collectors: list[Compiled] = []


@contextlib.contextmanager
def collected() -> Iterator[Compiled]:
    """A block in which tensors are collected for whose size something is compiled."""
    collector = Compiled()
    _collectors.append(collector)
    try:
        yield collector
    finally:
        _collectors.remove(collector)


def shape_of(tensor: tf.Tensor) -> list[tf.Tensor]:
    """The shape of a tensor, in a list; nothing where it is known while tracing."""
    if tensor.shape.is_fully_defined():
        return []
    if tensor.shape.rank is None:
        return [tf.size(tensor, tf.int64)[None]]
    return [tf.shape(tensor, tf.int64)]


def note(tensor: tf.Tensor) -> None:
    """Notes, for the trace at hand, that something is compiled for the size of a tensor."""
    for collector in _collectors:
        collector.note(tensor)
