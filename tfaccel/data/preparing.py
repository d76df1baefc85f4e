"""prepare: an input pipeline that keeps up with the model.

Source: https://www.tensorflow.org/guide/data_performance
"""

import dataclasses
import os
import time
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from tfaccel.compat.tf_data import effect, lasting_effect, stages
from tfaccel.data._components import is_batched
from tfaccel.data._looking import Bounds, Log
from tfaccel.data._measure import Timings, measure
from tfaccel.data._pipeline import Layout, Map, Pipeline
from tfaccel.data._screen import Screen
from tfaccel.data._sources import Arrays, is_arrays
from tfaccel.data._values import look_at_arrays, look_at_mapped
from tfaccel.data.findings import Findings
from tfaccel.data.prepared import Account, Prepared
from tfaccel.data.rules import Rules
from tfaccel.measure.timing import Clock
from tfaccel.measure.units import size
from tfaccel.system.arguments import positive
from tfaccel.system.memory import available_bytes

# TensorFlow's random operations: what they have drawn is forgotten with each iterator.
_RANDOM = frozenset(
    (
        *("RandomUniform", "RandomUniformInt", "RandomStandardNormal", "TruncatedNormal"),
        *("RandomShuffle", "RandomGamma", "RandomPoissonV2", "Multinomial"),
        *("SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2"),
    )
)
# The cache leaves memory for the model.
_CACHE_SHARE = 0.25


def prepare(
    data: Any,
    batch_size: int | None = None,
    *,
    map: Map | None = None,
    augment: Map | None = None,
    shuffle: bool | int = False,
    seed: int | None = None,
    drop_remainder: bool = False,
    cache: bool | Literal["auto"] = "auto",
    max_cache_bytes: int | None = None,
    validate: bool | Literal["report", "drop"] = False,
    rules: Rules | None = None,
    max_check_seconds: float | None = 60.0,
    measure_seconds: float | None = 2.0,
    clock: Clock = time.perf_counter,
) -> Prepared:
    """Makes a dataset for `fit` of arrays or a dataset, with each stage where it pays.

    Stages: read, `map`, validate, cache, shuffle, `augment`, batch, prefetch. Measuring decides
    only about threads, a thread pool of the pipeline's own and a cache, not about samples and
    their order. A dataset that one more iteration would change is neither measured nor, with
    `cache="auto"`, cached.

    Args:
        data: arrays (also dictionaries, `(x, y)`, `(x, y, sample_weight)`; arrays mapped from
            disk stay there), or a `tf.data.Dataset`, finite or not.
        batch_size: samples in a batch. None for a dataset whose elements are batches.
        map: makes a sample of what `data` has, the same each time: decoding, features.
        augment: changes a sample, differently each time; its results are not cached.
        shuffle: True to shuffle all samples (of a known number), or the size of the buffer.
        seed: of the shuffling.
        drop_remainder: leave out the last batch if it is smaller.
        cache: keep mapped samples in memory. `"auto"` where it pays and they fit.
        max_cache_bytes: that `"auto"` may take; None for a quarter of the free memory.
        validate, rules: `"report"` (or True) warns of samples that `check` would find, `"drop"`
            also leaves them out: those of arrays at once, those of a dataset as they pass.
        max_check_seconds: that looking at arrays may take; the rest is kept. None for no bound.
        measure_seconds: about what measuring may take; None to measure nothing.
        clock: seconds.

    Returns:
        A `tf.data.Dataset` with an `.account` of what was decided and `.findings`.

    Raises:
        TypeError: `data` is neither arrays nor a dataset.
        ValueError: an argument breaks its rule; the message names it.

    >>> x, y = np.arange(10.0), np.arange(10)
    >>> dataset = tfaccel.data.prepare((x, y), 4, map=lambda x, y: (x * 2, y))
    >>> [labels.numpy().tolist() for _, labels in dataset]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    """
    pipeline = _asked_for(data, batch_size, map, augment, shuffle, seed, drop_remainder)
    mode = _mode_of(validate)
    if cache not in (True, False, "auto"):
        raise ValueError(f'`cache` must be True, False or "auto". Received: {cache!r}')
    pipeline, found = _validated(pipeline, mode, rules or Rules(), max_check_seconds, clock)
    account = _decided(pipeline, cache, max_cache_bytes, measure_seconds, clock)
    return Prepared(pipeline.dataset(account.layout), account, found)


def _decided(
    pipeline: Pipeline, cache: bool | str, most: int | None, seconds: float | None, clock: Clock
) -> Account:
    notes: list[str] = []
    timings = _timings(pipeline, seconds, clock, notes)
    layout = timings.fastest(_layouts(pipeline)) if timings.layouts else _unmeasured(pipeline)
    cached = _is_cached(pipeline, cache, most, timings, notes)
    return Account(dataclasses.replace(layout, cached=cached), timings, tuple(notes))


def _validated(
    pipeline: Pipeline, mode: str, rules: Rules, max_seconds: float | None, clock: Clock
) -> tuple[Pipeline, Callable[[], Findings]]:
    """The pipeline without what validation drops, and what says what was found."""
    if not mode:
        return pipeline, Findings
    if isinstance(pipeline.source, tf.data.Dataset):
        batched = pipeline.batch_size is None and is_batched(pipeline.source.element_spec)
        log = Log("a dataset, as it passes", None if batched else pipeline.length)
        screen = Screen(rules, log, drop=mode == "drop", batched=batched)
        screened = dataclasses.replace(pipeline, screen=screen.applied)
        return screened, lambda: dataclasses.replace(log.findings(), samples=screen.samples)
    log = Log("arrays", pipeline.source.length)
    bounds = Bounds.begin(None, max_seconds, clock)
    if pipeline.map is None:
        bad = look_at_arrays(pipeline.source, rules, bounds, log)
    else:
        bad = look_at_mapped(pipeline, rules, bounds, log)
    if bad and mode == "drop":
        log.count(dropped=len(bad))
        rows = np.setdiff1d(np.arange(pipeline.source.length), sorted(bad))
        if not len(rows):
            raise ValueError(f"`data` has no sample without a fault. {log.findings().summary()}")
        pipeline = dataclasses.replace(pipeline, rows=rows)
    findings = log.findings()
    if not findings.ok:
        warnings.warn(f"tfaccel.data: {findings.summary()}", stacklevel=3)
    return pipeline, lambda: findings


def _layouts(pipeline: Pipeline) -> list[Layout]:
    """What is worth trying, the simplest first."""
    cores = os.cpu_count() or 1
    return [Layout(), Layout(parallel=True), Layout(parallel=True, private_threads=cores)]


def _unmeasured(pipeline: Pipeline) -> Layout:
    """The layout that is most often the fastest."""
    return Layout(parallel=not pipeline.gathers_batches)


def _timings(
    pipeline: Pipeline, max_seconds: float | None, clock: Clock, notes: list[str]
) -> Timings:
    if max_seconds is None:
        return Timings()
    if not max_seconds > 0:
        raise ValueError(f"`measure_seconds` must be positive, or None. Received: {max_seconds!r}")
    why = _reason_not_to_iterate(pipeline)
    if why:
        notes.append(f"Nothing was measured, as one more iteration would change the data: {why}.")
        return Timings()
    try:
        return measure(pipeline, _layouts(pipeline), max_seconds, clock)
    except (tf.errors.OpError, ValueError, TypeError) as error:
        # The same error comes, or does not come, when the dataset is used.
        notes.append(f"Nothing was measured, as the data raised {type(error).__name__}.")
        return Timings()


def _reason_not_to_iterate(pipeline: Pipeline) -> str:
    why = "" if isinstance(pipeline.source, Arrays) else lasting_effect(pipeline.source)
    if why or pipeline.augment is None:
        return why
    plain = dataclasses.replace(pipeline, shuffle=0, screen=None, batch_size=None)
    found = stages(plain.batches(Layout()))
    return effect(found[-1], _RANDOM) if found else ""


def _is_cached(
    pipeline: Pipeline, cache: bool | str, most: int | None, timings: Timings, notes: list[str]
) -> bool:
    """Whether mapped samples are kept in memory; a note says why not."""
    if cache is True and pipeline.length is None:
        notes.append("The cache is as large as the data, whose length is unknown.")
    if cache != "auto":
        return bool(cache)
    if pipeline.gathers_batches or not timings.cache_pays or timings.sample_bytes is None:
        return False
    if pipeline.length is None:
        notes.append("No cache, as the length of the data is unknown or without end.")
        return False
    bound = int(_CACHE_SHARE * (available_bytes() or 0)) if most is None else most
    needed = timings.sample_bytes * pipeline.length
    if needed > bound:
        notes.append(f"No cache: {size(needed)}, beyond {size(bound)}.")
    return needed <= bound


def _asked_for(
    data: Any,
    batch_size: int | None,
    map: Map | None,
    augment: Map | None,
    shuffle: bool | int,
    seed: int | None,
    drop_remainder: bool,
) -> Pipeline:
    """`prepare`'s arguments as a pipeline."""
    if batch_size is not None:
        positive("batch_size", batch_size)
    for name, function in (("map", map), ("augment", augment)):
        if function is not None and not callable(function):
            raise ValueError(f"`{name}` must be a function, or None. Received: {function!r}")
    source = _source(data)
    if batch_size is None and isinstance(source, Arrays):
        raise ValueError("`batch_size` must be given for arrays. Received: None")
    pipeline = Pipeline(source, batch_size, map, augment, 0, seed, drop_remainder)
    if shuffle is True and pipeline.length is None:
        raise ValueError(
            "`shuffle` must be the size of a buffer where the length of `data` is unknown or "
            "without end. Received: True"
        )
    if not isinstance(shuffle, bool):
        positive("shuffle", shuffle)
    buffer = pipeline.length if shuffle is True else int(shuffle)
    return dataclasses.replace(pipeline, shuffle=buffer or 0)


def _source(data: Any) -> Arrays | tf.data.Dataset:
    if isinstance(data, tf.data.Dataset):
        return data
    if not is_arrays(data):
        raise TypeError(
            "`data` must be arrays or a tf.data.Dataset (of a generator: "
            "tf.data.Dataset.from_generator). Received: " + type(data).__name__
        )
    if isinstance(data, tuple) and data and all(part is None for part in data[1:]):
        data = data[0]  # Keras's (x, None)
    arrays = Arrays.of(data)
    if not arrays.length:
        raise ValueError("`data` must have at least one sample. Received: none")
    if any(leaf is None or leaf.dtype.kind == "O" for leaf in tf.nest.flatten(arrays.structure)):
        raise ValueError(
            "`data` must be arrays of one shape and dtype, without None. "
            "Received: others; `tfaccel.data.check` says which samples differ"
        )
    return arrays


def _mode_of(validate: Any) -> str:
    """`report`, `drop`, or nothing."""
    modes = {False: "", True: "report", "report": "report", "drop": "drop"}
    if not isinstance(validate, bool | str) or validate not in modes:
        raise ValueError(
            f'`validate` must be True, False, "report" or "drop". Received: {validate!r}'
        )
    return modes[validate]
