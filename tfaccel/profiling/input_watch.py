"""Notices that steps wait for their input, and says what to change."""

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from tfaccel.compat.tf_data import Stage, dataset_of, stages
from tfaccel.measure.timing import Clock, wait_for
from tfaccel.measure.units import milliseconds
from tfaccel.profiling.sampling import Sampling
from tfaccel.profiling.tally import INPUT_BOUND_SHARE
from tfaccel.steps.replay import is_plain
from tfaccel.training.step_dispatcher import StepDispatcher

# The first steps trace; the next ones use up the batches that were made meanwhile.
_SKIPPED_STEPS = 8
# The measured steps of a verdict. Old ones are forgotten, as trials also leave a full buffer.
_STEPS = 4
# A pipeline with a cache is slow in the first epoch only, so the second is watched, too.
_EPOCHS = 2
# A fit of no more calls ends before a verdict.
LEAST_CALLS = _SKIPPED_STEPS + _STEPS


class InputWatch:
    """Runs the step in use, and before some steps takes the batch out.

    That shows how long a step waits for its input, and costs no more than `Sampling`'s share of
    the time. After the verdict, or two epochs, the watch ends and costs nothing.

    Args:
        function: the fit's train function; nobody else may watch it.
        clock: seconds.
        tell: called once, with sentences that say that the input is the bottleneck.
    """

    def __init__(
        self,
        function: StepDispatcher,
        clock: Clock,
        tell: Callable[[str], None],
    ):
        self._function = function
        self._clock, self._tell = clock, tell
        self._sampling = Sampling(clock)
        self._start = clock()
        self._calls = self._epochs = 0
        self._measured: list[tuple[float, float]] = []
        function.watch(self._step)

    def begin_epoch(self) -> None:
        """An epoch begins."""
        self._epochs += 1
        if self._epochs > _EPOCHS:
            self.end()

    def end(self) -> None:
        """Watches no longer."""
        self._function.watch(None, instead_of=self._step)

    def _step(self, iterator: Any) -> Any:
        built = self._function.built
        if built is not None and built.ahead:
            return self._function.step(iterator)  # it ran in an earlier call, on its own batch
        if self._function.is_racing:
            return self._function.step(iterator)
        self._calls += 1
        due = self._calls > _SKIPPED_STEPS and is_plain(iterator)
        due = due and not self._function.taken.has_more
        if not due or not self._sampling.is_due(self._clock() - self._start):
            return self._function.step(iterator)
        report = self._function.report
        sample, feeding = self._sampling.take(iterator, self._function.taken)
        start = self._clock()
        logs = self._function.step(feeding)
        wait_for(logs)
        if self._function.report is report:  # no trials in it
            self._measured.append((sample.waited_seconds, self._clock() - start))
            self._judge(iterator)
        return logs

    def _judge(self, iterator: tf.data.Iterator) -> None:
        latest = self._measured[-_STEPS:]
        waited, stepped = sum(w for w, _ in latest), sum(s for _, s in latest)
        if len(latest) == _STEPS and 0 < waited >= INPUT_BOUND_SHARE * (waited + stepped):
            self.end()
            self._tell(bottleneck(waited / _STEPS, stepped / _STEPS, dataset_of(iterator)))


def bottleneck(waited_seconds: float, step_seconds: float, dataset: tf.data.Dataset | None) -> str:
    """Sentences that say that the input sets the pace, and what to change."""
    share = waited_seconds / (waited_seconds + step_seconds)
    found = stages(dataset) if dataset is not None else None
    said = (
        f"The input is the bottleneck: {share:.0%} of a step is waiting for it "
        f"({milliseconds(waited_seconds)}, and {milliseconds(step_seconds)} of training). "
        "A faster step would wait longer."
    )
    return " ".join([said, *_remedies(found or ()), _PREPARE])


_PREPARE = (
    "`tfaccel.data.prepare` puts each stage where it pays, and its `.account` says which part "
    "takes the time."
)


# The first stages of the pipeline that Keras makes of arrays, which no user can change.
# Source: get_tf_dataset in keras/src/trainers/data_adapters/array_data_adapter.py
_OF_ARRAYS = ["Range", "Map", "Prefetch", "FlatMap", "Tensor", "Repeat", "Zip"]


def _remedies(found: tuple[Stage, ...]) -> Iterator[str]:
    if [stage.name for stage in found[: len(_OF_ARRAYS)]] == _OF_ARRAYS:
        yield (
            "Keras picks each batch out of your arrays: larger batches, or a tf.data.Dataset "
            "of the arrays in their place, may take less."
        )
        return
    names = {stage.name for stage in found}
    if any(stage.runs_python for stage in found):
        yield (
            "Python code makes the batches, in one thread: give a PyDataset `workers`, or do "
            "the work in tf.data."
        )
    if "Map" in names:
        yield "Give `map` `num_parallel_calls=tf.data.AUTOTUNE`."
    if found and "Cache" not in names:
        yield "Put `.cache()` behind what is the same in each epoch, if it fits in memory."
    if found and "Prefetch" not in names:
        yield "End the dataset with `.prefetch(tf.data.AUTOTUNE)`."
