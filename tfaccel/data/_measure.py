"""How long a pipeline takes by itself, part by part, and which layout is fastest."""

import dataclasses
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from tfaccel.data._pipeline import Layout, Pipeline
from tfaccel.data._sources import Arrays
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.racing import FEWEST, verdict
from tfaccel.measure.timing import Clock, speedup

# A layout that costs threads or memory has to be this much faster.
_WORTHWHILE = 1 / 0.9
# Rounds in which all are timed in turns: the fewest that a race accepts, as time is short.
_ROUNDS = FEWEST
# The most bytes in the trial's cache, which holds one batch at least.
_KEPT_BYTES = 2**28
# The most batches in a round.
_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Timings:
    """What was measured on the pipeline alone, without a model."""

    # Seconds a batch that each part takes, in one thread: `read`, `map`, `augment`, `batch`.
    parts: dict[str, float] = dataclasses.field(default_factory=dict)
    # Seconds a batch of the whole pipeline, by layout, turn by turn.
    turns: dict[Layout, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    # A batch of mapped samples from the cache; None where not measured.
    cached_seconds: float | None = None
    sample_bytes: float | None = None  # of a mapped sample; None where not measured

    @property
    def layouts(self) -> dict[Layout, float]:
        """Seconds a batch of the whole pipeline, by layout."""
        return {layout: statistics.median(found) for layout, found in self.turns.items()}

    @property
    def bound_by(self) -> str:
        """The part that takes most of the time; empty where nothing was measured."""
        return max(self.parts, key=self.parts.__getitem__, default="")

    def fastest(self, layouts: Sequence[Layout]) -> Layout:
        """The simplest layout that no later one beats, by the rule of every race."""
        best = layouts[0]
        for layout in layouts[1:]:
            if layout in self.turns and self._beats(layout, best):
                best = layout
        return best

    def _beats(self, layout: Layout, best: Layout) -> bool:
        pairs = zip(self.turns[best], self.turns[layout], strict=True)
        measured = [(one, other) for one, other in pairs if other > 0]  # 0: below a clock's tick
        if not measured:
            return False
        gain = speedup(*zip(*measured, strict=True))
        return verdict(gain, _WORTHWHILE)[0] is Outcome.FASTER

    @property
    def cache_pays(self) -> bool:
        """Whether the cache saves a good part of reading and mapping."""
        made = self.parts.get("read", 0.0) + self.parts.get("map", 0.0)
        return self.cached_seconds is not None and _WORTHWHILE * self.cached_seconds < made


def measure(
    pipeline: Pipeline, layouts: Sequence[Layout], max_seconds: float, clock: Clock
) -> Timings:
    """Times a pipeline's parts and layouts on its first batches, within `max_seconds`.

    The pipelines that are timed are made anew from the source and never shuffle, so neither
    the order nor a cache of the real one is used up.
    """
    pipeline = dataclasses.replace(pipeline, shuffle=0, screen=None)
    stages = _stages(pipeline)
    tried: dict[str | Layout, tf.data.Dataset] = {
        name: _alone(stage) for name, stage in stages.items()
    }
    tried |= {layout: pipeline.dataset(layout) for layout in layouts}
    size = None
    if not pipeline.gathers_batches:
        mapped = _mapped(pipeline)
        size, kept = _kept(mapped, max_seconds / 4, clock)
        if kept is not None:
            tried["cache"] = _alone(_Tried(kept, mapped.per_batch))
    turns = _in_turns(tried, max_seconds * 3 / 4, clock)
    seconds = {name: statistics.median(found) for name, found in turns.items()}
    parts, before = {}, 0.0
    for name in stages:
        parts[name] = max(0.0, seconds[name] - before)
        before = max(before, seconds[name])
    by_layout = {layout: turns[layout] for layout in layouts}
    return Timings(parts, by_layout, seconds.get("cache"), size)


class _Tried(NamedTuple):
    """A dataset to be timed."""

    dataset: tf.data.Dataset
    per_batch: int  # its elements that make a batch


def _alone(tried: _Tried) -> tf.data.Dataset:
    """The dataset with one element a batch, in one thread.

    Samples are dropped inside tf.data: handing one to Python costs a fraction of a
    millisecond, which a real pipeline never pays.
    """
    dataset, options = tried.dataset, tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.experimental_optimization.inject_prefetch = False
    if tried.per_batch > 1:
        dataset = dataset.map(lambda *_: True).batch(tried.per_batch)
    return dataset.with_options(options)


def _mapped(pipeline: Pipeline) -> _Tried:
    """The mapped samples."""
    is_arrays = isinstance(pipeline.source, Arrays)
    source = pipeline.indices() if is_arrays else pipeline.source
    return _Tried(pipeline.mapped(source, Layout()), pipeline.batch_size or 1)


def _stages(pipeline: Pipeline) -> dict[str, _Tried]:
    """Each part with all those before it, in one thread."""
    whole = _Tried(pipeline.batches(Layout()), 1)
    if pipeline.gathers_batches:
        return {"read": whole}
    found = {"read": _mapped(dataclasses.replace(pipeline, map=None))}
    if pipeline.map is not None:
        found["map"] = _mapped(pipeline)
    if pipeline.augment is not None:
        mapped = _mapped(pipeline)
        found["augment"] = mapped._replace(dataset=mapped.dataset.map(pipeline.augment))
    if pipeline.batch_size is not None:
        found["batch"] = whole
    return found


def _kept(
    mapped: _Tried, max_seconds: float, clock: Clock
) -> tuple[float | None, tf.data.Dataset | None]:
    """The mean bytes of a mapped sample, and some samples whose cache is filled."""
    until, total, count = clock() + max_seconds, 0, 0
    for element in mapped.dataset.take(mapped.per_batch * _BATCHES):
        total += sum(_bytes(leaf) for leaf in tf.nest.flatten(element))
        count += 1
        enough = clock() > until or total > _KEPT_BYTES
        if enough and count >= mapped.per_batch:
            break
    if not count:
        return None, None
    kept = mapped.dataset.take(count).cache()
    for _ in _alone(_Tried(kept, count)):
        pass
    return total / count, kept


def _bytes(leaf: object) -> int:
    if not isinstance(leaf, tf.Tensor):
        return sum(_bytes(part) for part in tf.nest.flatten(leaf, expand_composites=True))
    if leaf.dtype == tf.string:
        return int(tf.reduce_sum(tf.strings.length(leaf)))
    return int(leaf.shape.num_elements() or 0) * leaf.dtype.size


def _in_turns(
    tried: dict[str | Layout, tf.data.Dataset], max_seconds: float, clock: Clock
) -> dict[str | Layout, tuple[float, ...]]:
    """Seconds a batch of each dataset, timed in turns whose order alternates."""
    share = max_seconds / (_ROUNDS * len(tried))
    seconds: dict[str | Layout, list[float]] = {name: [] for name in tried}
    for turn in range(_ROUNDS):
        for name, dataset in list(tried.items())[:: -1 if turn % 2 else 1]:
            seconds[name].append(_seconds(dataset, share, clock))
    return {name: tuple(found) for name, found in seconds.items()}


def _seconds(dataset: tf.data.Dataset, share: float, clock: Clock) -> float:
    """Seconds a batch; with several batches the first one's start-up is left out."""
    ends = []
    start = clock()
    for _ in dataset:
        ends.append(clock())
        if len(ends) > _BATCHES or (len(ends) > 1 and ends[-1] - start > share):
            break
    if len(ends) < 2:
        return (ends[0] - start) if ends else 0.0
    return (ends[-1] - ends[0]) / (len(ends) - 1)
