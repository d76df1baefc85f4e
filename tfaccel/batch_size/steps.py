"""max_batch_size: the largest batch that fits, by real steps."""

import contextlib
import functools
import gc
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.autotune.eligibility import ineligibility
from tfaccel.batch_size.report import BatchSizeReport
from tfaccel.batch_size.search import Limits, SizeTrial, search
from tfaccel.core.plan import Pass, Plan, as_plan
from tfaccel.core.workload import Workload, replay
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock, timed
from tfaccel.steps.compiled_step import BuiltStep, build_step
from tfaccel.steps.snapshot import Snapshot, build_optimizer
from tfaccel.system import notices
from tfaccel.system.arguments import positive
from tfaccel.system.memory import Meter, is_out_of_memory, meter_for

# The share of the host's free memory that steps on a CPU may take: one step may take
# up to twice what was foreseen, and even then nothing may be swapped out.
_FREE_SHARE = 0.5


def max_batch_size(
    model: keras.Model,
    sample: Any,
    *,
    plan: Plan | Sequence[str | Pass] | str | os.PathLike[str] = "baseline",
    start: int = 1,
    limit: int = 65536,
    headroom: float = 0.9,
    memory_limit_bytes: int | None = None,
    verbose: int = 1,
) -> BatchSizeReport:
    """Finds the largest batch that a model can be trained on, by training on it.

    Real training steps are run on `sample`, its rows repeated: with `start` rows, then with
    twice as many, until memory runs out, then with numbers in between. On a GPU each step may
    meet that error. On a CPU the system would swap, or end the process, before that. So there the
    next batch's need is foreseen from the growth of the process, and none above
    `memory_limit_bytes` is tried.

    The model, its optimizer and its metrics are afterwards what they were, bit for bit.

    Args:
        model: compiled.
        sample: what the model is trained on: `(x, y)`, `(x, y, sample_weight)`, or whatever a
            batch is for a `train_step` of your own; x and y may be arrays, dictionaries or tuples
            of arrays, the first dimension the batch's. One row suffices.
        plan: under which the steps run, such as `["recompute"]`; by default your own step.
        start: the first batch size to try.
        limit: the largest batch size to try.
        headroom: the share of the largest batch that fits which is recommended, as a training
            also holds batches that were read ahead, and memory has gaps.
        memory_limit_bytes: what a step may need above what the process (on a CPU) has
            now, or what TensorFlow may hold on the GPU, weights included. None: on a
            CPU half of what is free, on a GPU all that there is.
        verbose: 0 for silence, 1 to print the report.

    Returns:
        The report; its `batch_size` is the recommended one, 0 where nothing fits.

    Raises:
        TypeError, ValueError: an argument breaks its rule, or the model can't be
            trained on `sample` for another reason than memory.
        RuntimeError: this system does not tell how much memory a process takes.

    >>> model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> sample = np.ones((4, 3), "float32"), np.ones((4, 1), "float32")
    >>> report = max_batch_size(model, sample, limit=32, verbose=0)
    >>> report.batch_size, report.limited_by
    (32, 'limit')
    """
    rows = _rows(sample)
    _check(model, start, limit, headroom, memory_limit_bytes)
    with _prepared(model, rows) as workload:
        chosen = _plan(plan, workload)
        probe = _Probe(workload, chosen, rows, time.perf_counter)
        report = probe.report(start, limit, headroom, memory_limit_bytes)
    if verbose:
        notices.show(report)
    return report


def _check(
    model: keras.Model, start: int, limit: int, headroom: float, memory_limit_bytes: int | None
) -> None:
    if not getattr(model, "compiled", False):
        raise ValueError("`model` must be compiled: call model.compile(optimizer, loss) first.")
    if stopped := ineligibility(model):
        raise ValueError(f"`model` must have a compiled step of Keras's, on one device. {stopped}")
    for name, value in (("start", start), ("limit", limit)):
        positive(name, value)
    if start > limit:
        raise ValueError(f"`start` must not be above `limit` ({limit}). Received: {start}")
    if not 0 < headroom <= 1:
        raise ValueError(f"`headroom` must be above 0 and at most 1. Received: {headroom!r}")
    if memory_limit_bytes is not None and not memory_limit_bytes > 0:
        raise ValueError(
            f"`memory_limit_bytes` must be None or above 0. Received: {memory_limit_bytes!r}"
        )


def _plan(plan: Any, workload: Workload) -> Plan:
    chosen = as_plan(plan)
    for item in chosen.passes:
        if unsupported := item.unsupported(workload):
            raise ValueError(f"`plan` holds {item}, which can't serve this model: {unsupported}")
    return chosen


def _rows(sample: Any) -> Any:
    """The sample with tensors as leaves, its rows counted."""
    if isinstance(sample, tf.data.Dataset | keras.utils.PyDataset):
        raise TypeError(
            "`sample` must be one batch, such as `next(iter(dataset))` or `(x, y)`. "
            f"Received: {type(sample).__name__}"
        )
    rows = tf.nest.map_structure(_tensor, sample)
    counts = {int(tf.shape(leaf)[0]) for leaf in tf.nest.flatten(rows)}
    if len(counts) != 1 or counts == {0}:
        raise ValueError(
            "`sample` must hold arrays with the same number of rows, at least one. "
            f"Received rows: {sorted(counts) or 'no arrays'}"
        )
    return rows


def _tensor(leaf: Any) -> tf.Tensor:
    if not isinstance(leaf, tf.Tensor):
        leaf = np.asarray(leaf)
        if leaf.dtype == np.float64:  # as `fit` casts arrays
            leaf = leaf.astype(keras.config.floatx())
    try:
        tensor = tf.convert_to_tensor(leaf)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`sample` must hold arrays of numbers. Received: {error}") from error
    if not tensor.shape.rank:
        raise ValueError(
            "`sample` must hold arrays whose first dimension is the batch's. "
            f"Received: a number ({tensor.numpy()!r})"
        )
    return tensor


@contextlib.contextmanager
def _prepared(model: keras.Model, rows: Any) -> Iterator[Workload]:
    """A workload with all variables that a step makes; on leaving all is as it was."""
    if not model.built:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(rows)
        model(tf.nest.map_structure(lambda leaf: leaf[:1], x))
    build_optimizer(model)
    workload = Workload(model)
    state = Snapshot.of(workload)
    try:
        yield workload
    finally:
        model.reset_metrics()
        state.restore()  # the metrics, too, that were there before


class _Probe:
    """Runs real steps with any number of rows."""

    def __init__(self, workload: Workload, plan: Plan, rows: Any, clock: Clock):
        self._workload = workload
        self._plan = plan
        self._rows = rows
        self._spec = tf.nest.map_structure(
            lambda leaf: tf.TensorSpec([None, *leaf.shape[1:]], leaf.dtype), rows
        )
        self._clock = clock
        self._snapshot = Snapshot.of(workload)
        self._built: BuiltStep | None = None
        self._meter: Meter | None = None

    def report(
        self, start: int, limit: int, headroom: float, memory_limit_bytes: int | None
    ) -> BatchSizeReport:
        """Tries batch sizes until the largest is found."""
        first = self(1)  # unmeasured: traces, and starts the threads
        if first.verdict is not Outcome.FITS:
            return BatchSizeReport((first,), headroom, "memory", memory_limit_bytes)
        self._meter = _meter(self._workload)
        free = self._meter.available_bytes()
        if memory_limit_bytes is None and free is not None:
            memory_limit_bytes = int(free * _FREE_SHARE)
        limits = Limits(start, limit, memory_limit_bytes, self._meter.available_bytes)
        tried = search(self, limits)
        reached = any(t.batch_size == limit and t.verdict is Outcome.FITS for t in tried)
        limited_by = "limit" if reached else "memory"
        return BatchSizeReport(tried, headroom, limited_by, memory_limit_bytes)

    def __call__(self, batch_size: int) -> SizeTrial:
        """Runs two steps on a batch of this size; their memory is given back."""
        try:
            return self._tried(batch_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return SizeTrial(batch_size, Outcome.OUT_OF_MEMORY)
        finally:
            self._snapshot.restore()
            gc.collect()

    def _tried(self, batch_size: int) -> SizeTrial:
        with self._meter.measured() if self._meter else contextlib.nullcontext() as peak:
            if self._built is None:
                on_trace = self._snapshot.include_graph
                self._built = build_step(self._workload, self._plan, on_trace=on_trace)
            batch = tf.nest.map_structure(
                functools.partial(_repeated, count=batch_size), self._rows
            )
            iterator = iter(replay((batch,), self._spec).repeat())
            step = functools.partial(self._built, iterator)
            timed(step, self._clock)
            seconds = timed(step, self._clock)
        return SizeTrial(batch_size, Outcome.FITS, peak.bytes if peak else None, seconds)


def _repeated(leaf: tf.Tensor, count: int) -> tf.Tensor:
    with tf.device("CPU:0"):  # where a dataset's batches are
        return tf.gather(leaf, np.arange(count) % leaf.shape[0])


def _meter(workload: Workload) -> Meter:
    try:
        return meter_for(workload.device)
    except OSError as error:
        raise RuntimeError(
            "max_batch_size needs to know how much memory a process takes on a CPU, and "
            f"this system does not tell: {error}"
        ) from error
