"""Taking batches out of the user's iterator and feeding them back, none lost."""

from typing import Any

import tensorflow as tf

from tfaccel.core.looped import Call
from tfaccel.core.replicas import local_batches, replica_spec
from tfaccel.core.workload import CannotReplayError, replay, unattended
from tfaccel.steps.user_functions import open_spec

# How an iterator says that it has no more batches, in Python and in a graph.
END_OF_DATA = (StopIteration, tf.errors.OutOfRangeError)
# More often than any step runs. Endless data would be another kind of dataset, for which
# TensorFlow does not ask at each batch whether all workers still have data.
_FOREVER = 2**40


class Handed:
    """An endless iterator over batches that a loop handed over.

    Args:
        batches: the one of the present step, or several that were kept.
    """

    def __init__(self, batches: tuple[Call, ...]):
        self.batches = batches
        self._next = 0

    def __iter__(self) -> "Handed":
        return Handed(self.batches)

    def __next__(self) -> Call:
        batch = self.batches[self._next % len(self.batches)]
        self._next += 1
        return batch

    @property
    def element_spec(self) -> Call:
        """The spec of the batches, their number of samples left open."""
        return tf.nest.map_structure(open_spec, self.batches[0])


# What batches can be taken out of one by one.
ITERATORS = (tf.data.Iterator, tf.distribute.DistributedIterator, Handed)


def is_plain(iterator: Any) -> bool:
    """Whether batches can be taken out of the iterator one by one."""
    return isinstance(iterator, ITERATORS)


def is_of_input(error: BaseException) -> bool:
    """Whether the input pipeline raised an error within a step, so that it is the user's."""
    return "IteratorGetNext" in str(error)


def pull(iterator: Any, count: int, into: list[Any] | None = None) -> tuple[Any, ...]:
    """Up to `count` batches, fewer at the end of the data; StopIteration where there are none.

    Args:
        iterator: to take them out of.
        count: how many.
        into: a list to which each batch is added as soon as it is taken out.
    """
    into = [] if into is None else into
    begun = len(into)
    for _ in range(count):
        try:
            into.append(next(iterator))
        except END_OF_DATA:
            if len(into) == begun:
                raise
            break
    return tuple(into[begun:])


def feed(batches: tuple[Any, ...], like: Any, strategy: Any = None) -> Any:
    """An iterator over pulled batches, of the same type as the one that they came from.

    Args:
        batches: as `pull` gave them.
        like: where they came from.
        strategy: what it was distributed by, if it was.
    """
    distributed = isinstance(like, tf.distribute.DistributedIterator)
    return iter(kept(batches, like.element_spec, strategy if distributed else None))


def kept(
    batches: tuple[Any, ...], element_spec: Any, strategy: Any = None, forever: bool = False
) -> Any:
    """A dataset of batches that were pulled from an iterator with this `element_spec`.

    Args:
        batches: as `pull` gave them.
        element_spec: the iterator's.
        strategy: what it was distributed by; None where it was not.
        forever: whether to begin again after the last one.

    Raises:
        CannotReplayError: `forever` is True, and these batches can only be fed too slowly to time.
    """
    if isinstance(batches[0], Call):
        return Handed(batches)
    make = replay if forever else _in_any_way
    if strategy is None:
        dataset = make(batches, element_spec)
        return dataset.repeat() if forever else dataset
    # A worker's replicas take from its dataset in turn.
    shares = tuple(share for batch in batches for share in local_batches(batch))
    dataset = make(shares, replica_spec(element_spec))
    dataset = dataset.repeat(_FOREVER) if forever else dataset
    return strategy.distribute_datasets_from_function(lambda context: dataset)


def _in_any_way(batches: tuple[Any, ...], element_spec: Any) -> tf.data.Dataset:
    try:
        return replay(batches, element_spec)
    except CannotReplayError:
        # Slower by tens of milliseconds, but it serves every type that tf.data can hold.
        slow = tf.data.Dataset.from_generator(lambda: iter(batches), output_signature=element_spec)
        return unattended(slow)
