"""Looking at arrays, chunk by chunk, and at what a map makes of them."""

import keras
import numpy as np
import tensorflow as tf

from tfaccel.data._bounds import Bounds
from tfaccel.data._log import Log
from tfaccel.data._pipeline import Layout, Pipeline
from tfaccel.data._sources import Arrays
from tfaccel.data._stream import first_line
from tfaccel.data._values import examine
from tfaccel.data.findings import Fault, FaultKind
from tfaccel.data.rules import Rules


def look_at_arrays(
    arrays: Arrays, rules: Rules, bounds: Bounds, log: Log, path: str | None = None
) -> set[int]:
    """Looks at arrays, as far as the bounds go; returns the samples with a fault."""
    indices, bad, done = bounds.spread(arrays.length), set[int](), 0
    if not arrays.length:
        log.add(Fault(FaultKind.EMPTY, "there are no samples", path=path))
    for chunk in arrays.chunks(indices):
        if bounds.is_over:
            break
        # A slice is a view; indices would copy.
        whole = int(chunk[-1] - chunk[0]) == len(chunk) - 1
        batch = arrays.take(slice(chunk[0], chunk[-1] + 1) if whole else chunk)
        bad |= {int(chunk[row]) for row in examine(batch, rules, log, indices=chunk, path=path)}
        done += len(chunk)
    if path is None:
        log.count(samples=done)
    for said in bounds.left_out(done, len(indices), arrays.length, "samples"):
        log.not_looked_at(said if path is None else f"{said} in {path}")
    log.seconds = bounds.seconds
    return bad


def look_at_mapped(pipeline: Pipeline, rules: Rules, bounds: Bounds, log: Log) -> set[int]:
    """Maps each sample of arrays once and looks at it; returns those with a fault.

    A sample that raises an error is skipped by tf.data. As the others come in order, a gap
    tells which it was; it is mapped once more, alone, for the reason.
    """
    assert isinstance(pipeline.source, Arrays)
    length, bad, expected = pipeline.source.length, set[int](), 0
    numbered = pipeline.mapped(pipeline.indices(), Layout(parallel=True), numbered=True)
    for row, sample in numbered.ignore_errors(log_warning=False):
        bad |= _failed(pipeline, range(expected, int(row)), log)
        expected = int(row) + 1
        batch = keras.tree.map_structure(lambda leaf: np.asarray(leaf)[None], sample)
        bad |= {int(row) for _ in examine(batch, rules, log, indices=[int(row)])}
        if bounds.is_over:
            break
    else:
        bad |= _failed(pipeline, range(expected, length), log)
        expected = length
    log.count(samples=expected)
    for said in bounds.left_out(expected, length, length, "samples"):
        log.not_looked_at(said)
    log.seconds = bounds.seconds
    return bad


def _failed(pipeline: Pipeline, rows: range, log: Log) -> set[int]:
    """Says why samples could not be mapped."""
    for row in rows:
        reason = "mapping it raised an error"
        try:
            source = tf.data.Dataset.from_tensors(tf.constant(row, tf.int64))
            next(iter(pipeline.mapped(source, Layout())))
        except Exception as error:
            reason = f"mapping it raised {type(error).__name__}: {first_line(error)}"
        log.add(Fault(FaultKind.UNREADABLE, reason, index=row))
    return set(rows)
