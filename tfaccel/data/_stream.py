"""Elements of a dataset or iterable one after another, whatever comes."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfaccel.data._bounds import Bounds
from tfaccel.data._components import components, is_batched, rows
from tfaccel.data._log import Log
from tfaccel.data._sources import as_batches, known_length
from tfaccel.data.findings import Fault, FaultKind

# What TensorFlow says before the reason: the node that failed, and the way to it.
_NODE = re.compile(r"^(\{\{[^}]*\}\} ?)+")
_WAY = re.compile(r"^Error in user-defined function .* with iterator: \S+: ")
# An iterator that only raises has no end either.
_ERRORS_IN_A_ROW = 100


class Element(NamedTuple):
    """One batch, or one sample made a batch of one."""

    batch: Any
    indices: range | None
    number: int | None
    rows: int


class Stream:
    """The elements of a dataset or iterable, with the samples' indices.

    Attributes:
        source: in words, with whether elements are taken for batches.
        total: how many samples there are; None where unknown.
    """

    def __init__(self, data: Any, batched: bool | None):
        self._batches = as_batches(data)
        spec = data.element_spec if isinstance(data, tf.data.Dataset) else None
        guess = True if spec is None else is_batched(spec)
        self._batched = guess if batched is None else batched
        length = known_length(data)
        self.source = "batches of samples" if self._batched else "samples"
        self.total = None if self._batched else length
        self._length = length

    def elements(self, bounds: Bounds, log: Log) -> Iterator[Element]:
        """What is to be looked at; errors become faults, and bounds are kept."""
        iterator, number, failures = iter(self._batches), -1, 0
        start: int | None = 0
        size: int | None = None if self._batched else 1
        while failures < _ERRORS_IN_A_ROW:
            number += 1
            if self._is_over(bounds, log, number):
                return
            try:
                batch = next(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                return
            except Exception as error:
                failures += 1
                log.add(self._failed(error, start, number))
                # Where a batch is lost nobody knows how many samples it had.
                start = None if start is None or size is None else start + size
                continue
            failures = 0
            element = self._element(batch, start, number)
            size = size or element.rows
            start = None if start is None else start + element.rows
            yield element
        log.not_looked_at(f"what comes after {failures} errors in a row")

    def _element(self, batch: Any, start: int | None, number: int) -> Element:
        if not self._batched:
            batch = tf.nest.map_structure(_one, batch)
        parts = components(batch)
        sizes = [size for size in (rows(part.value) for part in parts) if size is not None]
        count = max(sizes, default=0)
        indices = None if start is None else range(start, start + count)
        return Element(batch, indices, number if self._batched else None, count)

    def _failed(self, error: Exception, start: int | None, number: int) -> Fault:
        reason = f"reading it raised {type(error).__name__}: {first_line(error)}"
        if self._batched:
            return Fault(FaultKind.UNREADABLE, reason, batch=number)
        return Fault(FaultKind.UNREADABLE, reason, index=start)

    def _is_over(self, bounds: Bounds, log: Log, number: int) -> bool:
        enough = bounds.max_samples is not None and log.samples >= bounds.max_samples
        if not enough and not bounds.is_over:
            return False
        if self._length is not None and number >= self._length:
            return True  # there is nothing left
        bound = (
            f"max_samples={bounds.max_samples}"
            if enough
            else (f"max_seconds={bounds.max_seconds:g}")
        )
        log.not_looked_at(f"what comes after the first {log.samples:,} samples (`{bound}`)")
        return True


def _one(value: Any) -> Any:
    """A sample as a batch of one."""
    if isinstance(value, tf.SparseTensor):
        return tf.sparse.expand_dims(value, 0)
    return tf.expand_dims(value, 0) if tf.is_tensor(value) else np.asarray(value)[None]


def first_line(error: Exception) -> str:
    """What an error says, without TensorFlow's stack of graph nodes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[0] if lines else type(error).__name__
    return _WAY.sub("", _NODE.sub("", said))[:300]
