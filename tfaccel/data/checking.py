"""check: what is wrong with data, or with predictions, and where."""

import os
import time
from typing import Any

from tfaccel.data._bounds import Bounds
from tfaccel.data._log import Log
from tfaccel.data._look import look_at_arrays
from tfaccel.data._sources import Arrays, is_arrays, is_endless, is_files
from tfaccel.data._stream import Stream
from tfaccel.data._values import examine
from tfaccel.data.files.reading import check_files
from tfaccel.data.findings import Fault, FaultKind, Findings
from tfaccel.data.rules import Rules
from tfaccel.measure.timing import Clock


def check(
    data: Any,
    rules: Rules | None = None,
    *,
    batched: bool | None = None,
    max_samples: int | None = None,
    max_seconds: float | None = 60.0,
    clock: Clock = time.perf_counter,
) -> Findings:
    """Looks for what would poison a model, and says what it is and where.

    Looked for are NaN and Inf, shapes, dtypes and ranges other than the rules', labels
    outside the classes, negative weights, empty batches and samples, elements that raise an
    error, and WAV, PNG, JPEG, GIF, BMP, NPY and NPZ files that can't be read, are truncated,
    have a wrong header, are huge, or have another sample rate, channels or encoding than the
    others. Nothing is changed.

    Args:
        data: arrays (also dictionaries, `(x, y)`, `(x, y, sample_weight)`, or what
            `predict` returned); a `tf.data.Dataset`, a PyDataset or an iterable of batches,
            which is iterated once; or the path of a folder or file, or a list of paths.
        rules: what samples must be like; None for what holds in any case.
        batched: whether a dataset's elements are batches; None to tell by their shapes.
        max_samples: look at no more samples (or files) than these: spread evenly over
            arrays and files, the first ones of anything else. None for all.
        max_seconds: begin with no further batch or file after so many seconds; None for no
            such bound. A batch that is being made is waited for.
        clock: seconds.

    Returns:
        The findings. `.not_looked_at` says what the bounds left out.

    Raises:
        TypeError: `data` is of no kind that is known.
        ValueError: a bound is not positive, there is no such path, or there is no bound to
            data without end.

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
    if is_endless(data) and bounds.max_samples is None and bounds.max_seconds is None:
        raise ValueError(
            "`max_samples` or `max_seconds` must be given for data without end. "
            "Received: None for both"
        )
    stream = Stream(data, batched)
    log = Log(stream.source, stream.total)
    for element in stream.elements(bounds, log):
        examine(element.batch, rules, log, indices=element.indices, number=element.number)
        log.count(samples=element.rows)
    if not log.samples and log.findings().ok and bounds.max_samples is None:
        log.add(Fault(FaultKind.EMPTY, "there are no samples"))
    log.seconds = bounds.seconds
    return log.findings()
