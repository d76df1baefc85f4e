"""What the first steps of a fit show: batches and their sizes, times, what is to come."""

from collections.abc import Iterable
from typing import Any

import keras

from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial, baseline_trial, expected_trace_seconds
from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.workload import Workload, shapes, sizes_vary
from tfaccel.steps.compiled_step import StepFunction
from tfaccel.steps.logs import not_finite
from tfaccel.steps.remembered import Memory
from tfaccel.steps.replay import feed, kept
from tfaccel.steps.taken_batches import TakenBatches
from tfaccel.steps.worker_agreement import WorkerAgreement
from tfaccel.system.later import later
from tfaccel.training.progress import Progress

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.passes import step_batching
else:
    step_batching = later("tfaccel.passes.step_batching")

# The most batches that are kept, whatever `steps_per_execution` is.
_KEPT_BATCHES = 8


class Observed:
    """The facts of one fit, as far as its steps have shown them.

    Args:
        model: whose fit it is.
        baseline: the original step.
        memory: what earlier fits of the compiled model left.
        taken: batches that are out of the fit's iterator.
        progress: of the fit.
        agreement: of the processes that train together.
        callbacks: those of the fit; None where they can't be seen.

    Attributes:
        element_spec: of the iterator; None before the first step.
        seconds: of each timed step.
        steps_to_come: as the processes last agreed; None where unknown.
        not_finite: the names of logs that were not finite under the original step.
        many_sizes: whether batches have come in many sizes.
        callbacks: as given.
        prepared: what passes found out about the training, for every step that is built for it.
    """

    def __init__(
        self,
        model: keras.Model,
        baseline: StepFunction,
        memory: Memory,
        taken: TakenBatches,
        progress: Progress,
        agreement: WorkerAgreement,
        callbacks: tuple[keras.callbacks.Callback, ...] | None,
    ):
        self.element_spec: Any = None
        self.seconds: list[float] = []
        self.steps_to_come: int | None = None
        self.not_finite: frozenset[str] = frozenset()
        self.many_sizes = False
        self.callbacks = callbacks
        self.prepared = Prepared()
        self._model = model
        self._traces = keras_private.trace_counter(baseline)
        self._traces_before = 0
        self._trace_seconds = memory.trace_seconds  # unless the first step shows it
        self._progress = progress
        self._agreement = agreement
        self._batches: list[Any] = []
        self._sizes: list[Any] = []  # of all batches that were looked at
        self._taken = taken

    @property
    def usual_seconds(self) -> float:
        """Seconds of a step that is traced already; 0.0 before they are known."""
        return min(self.seconds[1:], default=0.0)

    @property
    def grows(self) -> bool:
        """Whether more is to come the more was made, as in a loop of unknown length."""
        return self._progress.grows

    @property
    def holds_data(self) -> bool:
        """Whether any batch is kept."""
        return bool(self._batches) or self._taken.has_more

    @property
    def has_taken(self) -> bool:
        """Whether batches were taken out of the iterator that are still to be fed."""
        return self._taken.has_more

    def agree_on_steps_to_come(self) -> int | None:
        """The chief's count, as workers may have fewer batches. All must ask together."""
        self.steps_to_come = self._agreement.same(self._progress.steps_to_come)
        return self.steps_to_come

    def agree(self) -> None:
        """What is to be the same before anything is chosen. All must ask together.

        Where one worker's callbacks look at every batch, none may run ahead.
        """
        self.agree_on_steps_to_come()
        if self._agreement.is_alone:
            return
        watched = step_batching.is_watched(self.workload())
        if self._agreement.any(watched) and not watched:
            self.callbacks = None

    def workload(self) -> Workload:
        """The facts of the training so far. No process waits for another."""
        alike = [b for b in self._batches if shapes(b) == shapes(self._batches[0])]
        return Workload(
            model=self._model,
            batches=tuple(alike),
            element_spec=self.element_spec,
            steps_to_come=self.steps_to_come,
            first_step_seconds=self.seconds[0] if self.seconds else 0.0,
            trace_seconds=self._trace_seconds,
            step_seconds=self.usual_seconds,
            callbacks=self.callbacks,
            sizes_vary=self.many_sizes or sizes_vary(self._sizes),
        )

    def untried(self, note: str, trials: Iterable[Trial] = ()) -> Report:
        """The report of a training that stays as it is, with the trials that ended before."""
        ended = tuple(trials)
        baseline = (baseline_trial(self.workload()),) if self.seconds else ()
        return Report((*baseline, *ended), Plan(), note=note, complete=not ended)

    def pull(self, iterator: Any) -> tuple[Any, ...]:
        """Takes the batches of this call out, and notes their sizes.

        Raises:
            StopIteration: there are none.
        """
        batches = self._taken.pull(iterator)
        self._sizes.extend(map(shapes, batches))
        return batches

    def take(self, iterator: Any, calls: int) -> None:
        """Takes the batches of the next calls out, to look at them; each is fed in its turn."""
        batches = self._taken.take(iterator, calls)
        self._sizes.extend(map(shapes, batches))
        self._batches.extend(batches)

    def fed(self, iterator: Any) -> Any:
        """This call's iterator, over taken batches as long as there are any."""
        return self._taken.fed(iterator)

    def fed_again(self, iterator: Any) -> Any:
        """As `fed`, for another step on this call's batches after the first one failed."""
        self._taken.take_back()
        return self._taken.fed(iterator)

    def feed(self, batches: tuple[Any, ...], like: Any) -> Any:
        """An iterator over batches, of the same type as the one that they came from."""
        return feed(batches, like, self._model.distribute_strategy)

    def replay(self) -> Any:
        """An iterator over the kept batches, like the one that the step runs on."""
        workload = self.workload()
        return iter(kept(workload.batches, self.element_spec, workload.strategy))

    def begin_step(self) -> None:
        """Prepares for a step that is timed."""
        self._traces_before = self._traces()

    def end_step(self, seconds: float, logs: Any, batches: tuple[Any, ...]) -> None:
        """Notes a step of the original that has run."""
        self.seconds.append(seconds)
        self.not_finite |= not_finite(logs)
        if len(self.seconds) == 1 and 0 < self._traces_before == self._traces():
            self._trace_seconds = self._trace_seconds or expected_trace_seconds(self._model)
        if len(self._batches) < _KEPT_BATCHES:
            self._batches.extend(batches)

    def forget_batches(self) -> None:
        """Lets go of all batches but those that are still to be fed."""
        self._batches.clear()
