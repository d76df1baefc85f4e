"""Measuring kernels on random data of a call's shapes."""

import math
import statistics
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.measure import racing, timing
from tfaccel.measure.numerics import relative_error
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Clock, Speedup
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._ranking import Candidate, Ranking
from tfaccel.ops.kernels._registry import REFERENCE, kernels, reference
from tfaccel.ops.kernels._spec import CallSpec
from tfaccel.ops.kernels._store import Store
from tfaccel.ops.kernels._validation import spec_of

# A gain below this share is not worth another set of roundings, nor another op in the graph.
WORTHWHILE = 1.05
# A run on random data is repeated for as long as this at most, whatever is at stake.
_MOST_SECONDS_A_KERNEL = 2.0


def find(
    op: str,
    shapes: tuple[Sequence[int], Sequence[int]],
    dtype: Any = "float32",
    direction: str = "forward",
    *,
    strides: int | tuple[int, ...] = 1,
    padding: str = "valid",
    dilation_rate: int | tuple[int, ...] = 1,
    groups: int = 1,
    max_seconds: float = 30.0,
    cache_dir: str | None = None,
    clock: Clock = time.perf_counter,
) -> Ranking:
    """Measures the kernels that can compute a call, and ranks them.

    Each is run on random data of these shapes, compared with TensorFlow's op, and timed in
    turns with it. Rankings are kept on disk, by device and versions, and from then on the op
    uses the winner for such shapes.

    Args:
        op: such as `"conv2d"`; see `tfaccel.ops`.
        shapes: of the input and of the weights, the channels last.
        dtype: of both.
        direction: `"forward"`, `"input_gradient"` or `"weight_gradient"`.
        strides, padding, dilation_rate, groups: as the op takes them.
        max_seconds: after this no further kernel is begun. A ranking that was cut short is
            not kept on disk.
        cache_dir: the folder to keep it in; None for `$TFACCEL_CACHE_DIR` or the usual one.
        clock: seconds.

    Returns:
        The ranking, the fastest kernel first, which prints as a table.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.
        RuntimeError: it was called inside a `tf.function`.

    Example:

    >>> ranking = tfaccel.ops.find("matmul", [(8, 4), (4, 2)], direction="weight_gradient")
    >>> sorted(candidate.kernel for candidate in ranking.candidates)[-3:]
    ['tensorflow', 'transposed', 'xla']
    """
    if not tf.executing_eagerly():
        raise RuntimeError("`find` times kernels, so it can't be called inside a tf.function.")
    more = {"dilation_rate": dilation_rate, "groups": groups}
    spec = spec_of(op, shapes, dtype, direction, strides=strides, padding=padding, **more)
    store = Store.at(cache_dir)
    known = store.ranking(spec)
    if known is not None and known.complete:
        return known
    found = measure(spec, clock, clock() + max_seconds)
    store.add(found)
    store.save()
    return found


def measure(
    spec: CallSpec,
    clock: Clock,
    deadline: float = math.inf,
    likely: Collection[str] | None = None,
    families: Collection[str] | None = (),
    expected: Mapping[str, float] = MappingProxyType({}),
) -> Ranking:
    """Runs, compares and times the kernels of a call, whose sizes are known.

    Args:
        spec: the call.
        clock: seconds.
        deadline: the clock's value after which no further kernel is begun.
        likely: the kernels to try; None for all.
        families: kernels to try that are otherwise left out; None where a plan may be saved.
        expected: the speedups of kernels of which something is known. Those of which less is
            expected than another was measured to have are not tried.
    """
    race = _Race(spec, clock)
    candidates, left_outs, surely = [race.own()], set(), 0.0
    others = kernels(spec.op, spec.direction)[1:]
    for kernel in sorted(others, key=lambda one: -expected.get(one.name, math.inf)):
        unsupported = kernel.unsupported(spec)
        if unsupported is not None:
            candidates.append(Candidate(kernel.name, Outcome.REFUSED, reason=str(unsupported)))
        elif (left_out := kernel.left_out(spec, families)) is not None:
            candidates.append(
                Candidate(kernel.name, Outcome.UNDECIDED, reason=str(left_out), unlikely=True)
            )
            left_outs.add(kernel.name)
        elif likely is not None and kernel.name not in likely:
            reason = "it has won no call of this kind"
            candidates.append(
                Candidate(kernel.name, Outcome.UNDECIDED, reason=reason, unlikely=True)
            )
        elif expected.get(kernel.name, math.inf) < surely:
            reason = "another is faster than it is expected to be"
            candidates.append(
                Candidate(kernel.name, Outcome.UNDECIDED, reason=reason, unlikely=True)
            )
        elif clock() + race.least_seconds > deadline:
            candidates.append(Candidate(kernel.name, Outcome.UNDECIDED, reason="out of time"))
        else:
            found = race.run(kernel, deadline)
            candidates.append(found)
            # What XLA compiles for each size may not be used for batches of many sizes.
            if found.verdict is Outcome.FASTER and found.speedup and not kernel.jit_compile:
                surely = max(surely, found.speedup.low)
    tried = (c.verdict is not Outcome.UNDECIDED or c.kernel in left_outs for c in candidates)
    return Ranking(spec, tuple(candidates), complete=all(tried))


def operands(spec: CallSpec, seed: int = 1) -> tuple[tf.Tensor, ...]:
    """Random operands of a call: standard normal numbers, and the result's shape for gradients."""
    pair = [
        tf.cast(tf.random.stateless_normal(shape, [seed, index]), spec.dtype)
        for index, shape in enumerate(spec.operands)
    ]
    forward = spec.direction == "forward"
    return (*pair, *(() if forward else (tf.constant(spec.result, tf.int32),)))


class _Race:
    """One call: its operands, TensorFlow's result, and how long TensorFlow takes."""

    def __init__(self, spec: CallSpec, clock: Clock):
        self._spec = spec
        self._clock = clock
        self._operands = operands(spec)
        own = reference(spec.op, spec.direction)
        self._own = self._runner(own)
        self._expected = self._exact()
        self._own()  # traced
        self._own_seconds = min(self._timed(self._own) for _ in range(2))

    def _exact(self) -> np.ndarray:
        """TensorFlow's result, in float32 at least."""
        wide = "float64" if self._spec.dtype == "float64" else "float32"
        first, second, *shape = self._operands
        operands = tf.cast(first, wide), tf.cast(second, wide), *shape
        return _reference.call(self._spec, *operands).numpy()

    @property
    def least_seconds(self) -> float:
        """The least seconds that comparing and timing a kernel takes."""
        return racing.FEWEST * self._own_seconds

    def own(self) -> Candidate:
        """TensorFlow's own kernel, as the candidate that the others are compared with."""
        return Candidate(REFERENCE, Outcome.BASELINE, self._own_seconds, Speedup())

    def run(self, kernel: Kernel, deadline: float) -> Candidate:
        """Traces, compares and times one kernel; whatever goes wrong is its verdict."""
        try:
            function = kernel.function(self._spec)
            result = tf.cast(function(*self._operands), self._expected.dtype)
            drift = relative_error(self._expected, result.numpy())
            bound = kernel.tolerance.get(self._spec.dtype, 0.0)
            if not drift <= bound:
                reason = f"off by {drift:.2g}, {bound:.2g} allowed"
                return Candidate(kernel.name, Outcome.UNFAITHFUL, drift=drift, reason=reason)
            found = self._gain(self._runner(kernel, function), deadline)
            if found is None:
                reason = "out of time"
                return Candidate(kernel.name, Outcome.UNDECIDED, drift=drift, reason=reason)
            seconds, gain = found
        except Exception as error:
            line = (str(error).strip().splitlines() or [""])[0][:120]
            reason = f"{type(error).__name__}: {line}"
            return Candidate(kernel.name, Outcome.FAILED, reason=reason)
        verdict, reason = racing.verdict(gain, WORTHWHILE, "TensorFlow's")
        return Candidate(kernel.name, verdict, seconds, gain, drift, reason, kernel.reduces)

    def _gain(self, step: Callable[[], None], deadline: float) -> tuple[float, Speedup] | None:
        """Seconds and speedup; None where there is no time to measure them."""
        own, seconds = racing.first_look(
            self._own_seconds,
            lambda: self._timed(self._own),
            lambda: self._timed(step),
            self._clock,
            deadline,
        )
        if racing.seems_hopeless(own, seconds):
            return seconds, timing.speedup([own], [seconds])
        now = self._clock()
        if now + racing.FEWEST * (seconds + own) > deadline:
            return None
        until = min(deadline, now + _MOST_SECONDS_A_KERNEL)
        race = racing.race(self._own, step, self._clock, until)
        return statistics.median(race.candidate_seconds), race.gain

    def _runner(
        self, kernel: Kernel, function: Callable[..., tf.Tensor] | None = None
    ) -> Callable[[], None]:
        """The kernel as a step. It returns nothing: copying the result would be timed too."""
        run = function or kernel.function(self._spec)

        def step() -> None:
            run(*self._operands)

        return step

    def _timed(self, step: Callable[[], None]) -> float:
        return timing.timed(step, self._clock)
