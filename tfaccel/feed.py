"""Taking batches out of the user's iterator and feeding them back, none lost."""

from typing import Any

import tensorflow as tf

from tfaccel.workload import CannotReplayError, replay

# How an iterator says that it has no more batches, in Python and in a graph.
END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)


def is_plain(iterator: Any) -> bool:
    """Whether batches can be taken out of the iterator one by one."""
    return isinstance(iterator, tf.data.Iterator)


def pull(iterator: tf.data.Iterator, count: int) -> tuple[Any, ...]:
    """Up to `count` batches, fewer at the end of the data.

    Raises:
        StopIteration: there are none, as Keras's own step does.
    """
    batches: list[Any] = []
    while len(batches) < count:
        try:
            batches.append(next(iterator))
        except END_OF_DATA:
            if not batches:
                raise
            break
    return tuple(batches)


def feed(batches: tuple[Any, ...], like: tf.data.Iterator) -> tf.data.Iterator:
    """An iterator over pulled batches that a step can't tell from the one they came from."""
    try:
        return iter(replay(batches, like.element_spec))
    except CannotReplayError:
        # Slower by tens of milliseconds, but it takes whatever tf.data can hold.
        return iter(
            tf.data.Dataset.from_generator(
                lambda: iter(batches), output_signature=like.element_spec
            )
        )
