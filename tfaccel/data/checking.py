"""check: what is wrong with data, or with predictions, and where."""

import math
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from tfaccel.data._components import Component, components, is_batched, rows
from tfaccel.data._looking import Bounds, Log
from tfaccel.data._sources import Arrays, as_batches, is_arrays, is_files, known_length
from tfaccel.data._values import examine, look_at_arrays
from tfaccel.data.files.reading import check_files
from tfaccel.data.findings import Fault, FaultKind, Findings, first_line
from tfaccel.data.rules import Rules
from tfaccel.measure.timing import Clock

# An iterator that only raises has no end either.
_ERRORS_IN_A_ROW = 100


class Element(NamedTuple):
    """One batch, or one sample made a batch of one."""

    parts: list[Component]
    indices: range | None
    number: int | None
    rows: int


class Stream:
    """The elements of a dataset or iterable, with the samples' indices.

    Attributes:
        source: the kind of data, and whether its elements are taken for batches, in words.
        total: how many samples there are; None where unknown.
    """

    def __init__(self, data: Any, batched: bool | None):
        self._batches = as_batches(data)
        spec = data.element_spec if isinstance(data, tf.data.Dataset) else None
        guess = True if spec is None else is_batched(spec)
        self._batched = guess if batched is None else batched
        length = known_length(data)
        length = None if length is None or math.isinf(length) else int(length)
        self.source = "batches of samples" if self._batched else "samples"
        self.total = None if self._batched else length
        self._length = length

    def elements(self, bounds: Bounds, log: Log) -> Iterator[Element]:
        """The elements to look at, within the bounds; errors become faults."""
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
        return Element(parts, indices, number if self._batched else None, count)

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


def check(
    data: Any,
    rules: Rules | None = None,
    *,
    batched: bool | None = None,
    max_samples: int | None = None,
    max_seconds: float | None = 60.0,
    clock: Clock = time.perf_counter,
) -> Findings:
    """Looks for faults in data that would spoil a model, and says where they are.

    Looked for are NaN and Inf, shapes, dtypes and ranges other than the rules', labels
    outside the classes, negative weights, empty batches and samples, elements that raise an
    error, and WAV, PNG, JPEG, GIF, BMP, NPY and NPZ files that can't be read, are truncated,
    have a wrong header, are huge, or have another sample rate, channels or encoding than the
    others. Nothing is changed.

    Args:
        data: arrays (also dictionaries, `(x, y)`, `(x, y, sample_weight)`, or what
            `predict` returned); a `tf.data.Dataset`, a PyDataset or an iterable of batches,
            which is iterated once; or the path of a folder or file, or a list of paths.
        rules: what samples must be like; None for the rules that hold in any case.
        batched: whether a dataset's elements are batches; None to tell by their shapes.
        max_samples: look at no more samples (or files) than these: spread evenly over
            arrays and files, the first ones of anything else. None for all.
        max_seconds: begin with no further batch or file after so many seconds; None for no
        clock: seconds.

    Returns:
        The findings. `.not_looked_at` says what the bounds left out.

    Raises:
        TypeError: `data` is of an unknown kind.
        ValueError: a bound is not positive, a path does not exist, or data without end is
            given no bound.

    Example:

    >>> x = np.zeros((100, 4), "float32")
    >>> x[17, 2] = np.nan
    >>> findings = tfaccel.data.check((x, np.arange(100) % 11), tfaccel.data.Rules(classes=10))
    >>> for where, fault, reason in findings.rows()[:2]:
    ...     print(where, fault, reason, sep=" | ")
    sample 17, x | nan | NaN at [2]
    sample 10, y | label | 10 is none of the classes 0 to 9
    >>> findings.indices[:3]
    (10, 17, 21)
    """
    rules = rules or Rules()
    bounds = Bounds.begin(max_samples, max_seconds, clock)
    if is_files(data):
        paths = [data] if isinstance(data, str | os.PathLike) else list(data)
        return check_files(paths, rules, bounds)
    if is_arrays(data):
        return _check_arrays(data, rules, bounds)
    return _check_batches(data, rules, bounds, batched)


def _check_arrays(data: Any, rules: Rules, bounds: Bounds) -> Findings:
    try:
        arrays = Arrays.of(data)
    except ValueError as error:
        log = Log("arrays")
        log.add(Fault(FaultKind.SHAPE, str(error)))
        return log.findings()
    log = Log("arrays", arrays.length)
    look_at_arrays(arrays, rules, bounds, log)
    return log.findings()


def _check_batches(data: Any, rules: Rules, bounds: Bounds, batched: bool | None) -> Findings:
    if known_length(data) == math.inf and bounds.max_samples is None and bounds.max_seconds is None:
        raise ValueError(
            "`max_samples` or `max_seconds` must be given for data without end. "
            "Received: None for both"
        )
    stream = Stream(data, batched)
    log = Log(stream.source, stream.total)
    for element in stream.elements(bounds, log):
        examine(element.parts, rules, log, indices=element.indices, number=element.number)
        log.count(samples=element.rows)
    if not log.samples and log.findings().ok and bounds.max_samples is None:
        log.add(Fault(FaultKind.EMPTY, "there are no samples"))
    log.seconds = bounds.seconds
    return log.findings()
