"""The latest batches of a traced step, kept so that they can be trained on again."""

from typing import Any

import tensorflow as tf

# The most bytes and the most batches that are held.
_MOST_BYTES = 64 * 2**20
_MOST = 256
# Never reached: enqueuing must not wait.
_CAPACITY = 2**30


class HeldBatches:
    """Holds the latest batches of a step, from within its graph.

    A queue takes each batch by reference and lets go of the oldest one: two small ops a step, in
    place of a batch that is taken out and fed anew, which takes a millisecond. `is_whole` is
    whether every batch so far was held.
    """

    def __init__(self) -> None:
        self.is_whole = True
        self._queue: tf.queue.FIFOQueue | None = None
        self._structure: Any = None
        self._length = 1
        # Made here: a step that makes a variable while it is traced is traced once more.
        with tf.device("CPU:0"):
            self._count = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._good = self._epoch = 0

    def hold(self, batch: Any, jit_compile: bool = False) -> Any:
        """Called while a step is traced, makes it hold its batch; returns the batch to go on with.

        A step that XLA compiles can't hold batches.
        """
        leaves = tf.nest.flatten(batch, expand_composites=True)
        if jit_compile or not leaves or not all(tf.is_tensor(leaf) for leaf in leaves):
            self.is_whole = False
            return batch
        dtypes = [leaf.dtype for leaf in leaves]
        if self._queue is None:
            with tf.init_scope(), tf.device("CPU:0"):
                self._queue = tf.queue.FIFOQueue(_CAPACITY, dtypes)
                self._structure = tf.nest.map_structure(tf.type_spec_from_value, batch)
                self._fill(1)
        if self._queue is None or self._queue.dtypes != dtypes:
            self.is_whole = False
            return batch
        with tf.control_dependencies([self._queue.enqueue(leaves)]):
            oldest = self._queue.dequeue()
            counted = self._count.assign_add(1)
        # Before the step uses it, so that a step that fails has mostly held its batch.
        with tf.control_dependencies([*tf.nest.flatten(oldest), counted]):
            leaves = [tf.identity(leaf) for leaf in leaves]
        return tf.nest.pack_sequence_as(batch, leaves, expand_composites=True)

    def _fill(self, count: int) -> None:
        assert self._queue is not None
        for _ in range(count):
            self._queue.enqueue([tf.zeros([0], dtype) for dtype in self._queue.dtypes])

    @property
    def length(self) -> int:
        """How many batches it holds; 0 where it can't, or no step was traced yet."""
        return self._length if self.is_whole and self._queue is not None else 0

    def widen(self, batch: Any, most: int = _MOST) -> None:
        """Holds as many batches like this one as the bounds allow, from now on."""
        if not self.is_whole:
            return  # a batch is no tensors alone, or not the same ones
        length = max(1, min(most, _MOST_BYTES // max(1, _bytes(batch))))
        if self._queue is not None and length > self._length:
            held = self._drained()
            self._fill(length - self._length)
            for element in held:
                self._queue.enqueue(element)
            self._length = length

    def mark_good(self) -> None:
        """Lets go of all batches, as the state is good now."""
        self._good = self._steps()

    def mark_epoch(self) -> None:
        """Marks the beginning of an epoch."""
        self._epoch = self._steps()

    def since_good(self) -> list[list[Any]] | None:
        """The batches since the state was good, an epoch's in each list; None where some are lost.

        May be called once, as it lets go of them.
        """
        steps = self._steps() - self._good
        if not self.is_whole or self._queue is None or not 0 < steps <= self._length:
            return None
        batches = [
            tf.nest.pack_sequence_as(self._structure, leaves, expand_composites=True)
            for leaves in self._drained()[-steps:]
        ]
        begun = self._epoch - self._good
        parts = [batches[:begun], batches[begun:]] if 0 < begun < steps else [batches]
        return parts

    def _drained(self) -> list[list[tf.Tensor]]:
        """All that the queue holds, the oldest first; it is empty afterwards."""
        assert self._queue is not None
        found = [self._queue.dequeue() for _ in range(int(self._queue.size()))]
        return [list(item) if isinstance(item, list | tuple) else [item] for item in found]

    def _steps(self) -> int:
        return int(self._count.numpy())  # a variable of several replicas is no number


def _bytes(batch: Any) -> int:
    leaves = tf.nest.flatten(batch, expand_composites=True)
    return sum(max(1, leaf.dtype.size) * int(tf.size(leaf)) for leaf in leaves)
