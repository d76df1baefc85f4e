"""Faults in the values of arrays, and of what a map makes of them."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.data._components import Component, Role, components, rows, rule_for
from tfaccel.data._looking import Bounds, Log
from tfaccel.data._pipeline import Layout, Pipeline
from tfaccel.data._sources import Arrays
from tfaccel.data.findings import Fault, FaultKind, first_line
from tfaccel.data.rules import Rules, dtype_name, fits

_NUMBERS = "fiubc"


def examine(
    parts: Sequence[Component],
    rules: Rules,
    log: Log,
    *,
    indices: Sequence[int] | np.ndarray | None = None,
    number: int | None = None,
    path: str | None = None,
) -> set[int]:
    """Looks at the parts of a batch and logs their faults.

    Args:
        parts: arrays or tensors, the first dimension of each being samples.
        rules: what they must be like.
        log: collects the faults.
        indices: of the samples in the data; None where unknown.
        number: of the batch; None where the data has no batches.
        path: of the file that the parts are from.

    Returns:
        The rows with a fault. Faults of the whole batch (its dtype, its length) have no row.
    """
    bad = set[int]()
    sizes = {part.name: rows(part.value) for part in parts}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        reason = f"the parts differ in length: {told}"
        log.add(Fault(FaultKind.SHAPE, reason, batch=number, path=path))
    if not any(sizes.values()):
        log.add(Fault(FaultKind.EMPTY, "there are no samples in it", batch=number, path=path))
    for part in parts:
        for row, kind, reason in faults_of(part, rules):
            if row is None:
                # Every batch has this fault; it is logged once.
                if log.first_time((path, part.name, kind, reason)):
                    log.add(Fault(kind, reason, part.name, path=path))
                continue
            index = None if indices is None or row >= len(indices) else int(indices[row])
            bad.add(row)
            log.add(Fault(kind, reason, part.name, index, number, path))
    return bad


_Found = tuple[int | None, FaultKind, str]


def faults_of(part: Component, rules: Rules) -> Iterator[_Found]:
    """The row (None for all), the kind and the reason of each fault of one array."""
    if isinstance(part.value, tf.RaggedTensor | tf.SparseTensor):
        yield from _of_composite(part)
        return
    array = np.asarray(part.value)
    if array.dtype.kind == "O":
        yield from _of_samples(part, array, rules)
        return
    name = "string" if array.dtype.kind in "US" else dtype_name(array.dtype)
    yield from _of_dtype(part, name, rules)
    yield from _of_shape(part, array, rules)
    if array.dtype.kind == "V" and array.dtype.names is None:  # bfloat16 and kin
        array = array.astype(np.float32)
    if array.dtype.kind in _NUMBERS and array.ndim:
        yield from _of_numbers(part, array, rules)


def _of_dtype(part: Component, name: str, rules: Rules) -> Iterator[_Found]:
    rule = rule_for(rules.dtype, part) if part.role is Role.INPUT else None
    if rule is not None and dtype_name(rule) != name:
        yield None, FaultKind.DTYPE, f"dtype {name} where {dtype_name(rule)} is asked for"


def _of_shape(part: Component, array: np.ndarray, rules: Rules) -> Iterator[_Found]:
    rule = rule_for(rules.shape, part) if part.role is Role.INPUT else None
    shape = array.shape[1:]
    if rule is not None and not fits(shape, tuple(rule)):
        for row in range(len(array) if array.ndim else 0):
            yield row, FaultKind.SHAPE, f"shape {shape} where {tuple(rule)} is asked for"
    elif 0 in shape:
        for row in range(len(array)):
            yield row, FaultKind.EMPTY, f"it has no values (shape {shape})"


def _of_numbers(part: Component, array: np.ndarray, rules: Rules) -> Iterator[_Found]:
    if array.dtype.kind in "fc" and not np.isfinite(array).all():
        yield from _where(np.isnan(array), FaultKind.NAN, "NaN{at}", array)
        yield from _where(np.isinf(array), FaultKind.INF, "{}", array)
    if part.role is Role.WEIGHT:
        yield from _where(array < 0, FaultKind.RANGE, "a negative weight: {}", array)
    elif part.role is Role.LABEL:
        classes = rule_for(rules.classes, part)
        if classes is not None:
            yield from _of_labels(array, classes)
    elif (ends := rule_for(rules.value_range, part)) is not None and array.dtype.kind != "c":
        outside = ((array < ends[0]) | (array > ends[1])) & ~np.isinf(array)
        said = f"{{}} is outside {ends[0]:g} to {ends[1]:g}"
        yield from _where(outside, FaultKind.RANGE, said, array)


def _of_labels(array: np.ndarray, classes: int) -> Iterator[_Found]:
    if array.ndim > 1 and array.shape[-1] == classes and classes > 1:
        outside, said = (array < 0) | (array > 1), "{} is outside 0 to 1"
    else:
        whole = np.floor(array.real) == array if array.dtype.kind in "fc" else True
        outside = ~(whole & (array.real >= 0) & (array.real < classes))
        said = f"{{}} is none of the classes 0 to {classes - 1}"
    # NaN and Inf are logged already.
    yield from _where(outside & np.isfinite(array), FaultKind.LABEL, said, array)


def _where(mask: np.ndarray, kind: FaultKind, said: str, array: np.ndarray) -> Iterator[_Found]:
    """A fault for each row of the mask that is not all False, with its first place.

    In `said`, {} stands for the value and its place, {at} for the place alone.
    """
    flat = mask.reshape(len(mask), -1)
    for row in np.flatnonzero(flat.any(axis=1)):
        places = np.flatnonzero(flat[row])
        first = np.unravel_index(places[0], array.shape[1:])
        at = f" at {[int(step) for step in first]}" if array.ndim > 1 else ""
        reason = said.format(f"{array[(row, *first)]}{at}", at=at)
        if len(places) > 1:
            reason += f", and at {len(places) - 1} more of {flat.shape[1]} places"
        yield int(row), kind, reason


def _of_composite(part: Component) -> Iterator[_Found]:
    """NaN and Inf in the values of a ragged or sparse tensor."""
    value = part.value
    if isinstance(value, tf.SparseTensor):
        numbers, row_of = value.values.numpy(), value.indices.numpy()[:, 0]
    else:
        numbers, row_of = value.flat_values.numpy(), np.arange(value.flat_values.shape[0])
        for ids in reversed(value.nested_value_rowids()):
            row_of = ids.numpy()[row_of]
    if numbers.dtype.kind not in "fc":
        return
    bad = ~np.isfinite(numbers.reshape(len(numbers), -1)).all(axis=1)
    for row in np.unique(row_of[bad]):
        is_nan = np.isnan(numbers[row_of == row]).any()
        kind = FaultKind.NAN if is_nan else FaultKind.INF
        yield int(row), kind, f"{kind.value} among its values"


def _of_samples(part: Component, array: np.ndarray, rules: Rules) -> Iterator[_Found]:
    """Faults of samples of several shapes or kinds: right is what most of them are."""
    samples = [_sample(item) for item in array]
    shape = rule_for(rules.shape, part) if part.role is Role.INPUT else None
    shape = tuple(shape) if shape is not None else _most([s.shape for s in samples])
    kind = _most([_kind(s) for s in samples])
    for row, sample in enumerate(samples):
        if _kind(sample) != kind:
            yield row, FaultKind.DTYPE, f"{_kind(sample)} where most samples are {kind}"
        elif not fits(sample.shape, shape):
            yield row, FaultKind.SHAPE, f"shape {sample.shape} where {shape} is asked for"
        elif sample.dtype.kind in _NUMBERS:
            one = Component(part.name, part.key, part.role, sample[None])
            yield from ((row, kind, said) for _, kind, said in faults_of(one, rules))


def _sample(item: Any) -> np.ndarray:
    try:
        return np.asarray(item)
    except ValueError:  # sizes within it differ
        return np.asarray(None)


def _kind(sample: np.ndarray) -> str:
    if sample.dtype.kind in _NUMBERS:
        return "numbers"
    return "text" if sample.dtype.kind in "US" else "neither numbers nor text"


def _most(values: list[Any]) -> Any:
    """The most frequent value; the first of several."""
    return collections.Counter(values).most_common(1)[0][0] if values else ()


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
        batch = components(arrays.take(slice(chunk[0], chunk[-1] + 1) if whole else chunk))
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
        batch = components(keras.tree.map_structure(lambda leaf: np.asarray(leaf)[None], sample))
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
