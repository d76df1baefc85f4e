"""One `fit` under acceleration: collect batches, tune, run, fall back if need be."""

import collections
import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.eligibility import ineligibility, too_short
from tfaccel.autotune.explicit_plan import prepared, served
from tfaccel.autotune.fallback_plan import fallback, fallbacks
from tfaccel.autotune.options import COLLECTED_STEPS, Options
from tfaccel.autotune.plan_cache import workload_key
from tfaccel.autotune.report import Report
from tfaccel.autotune.search import (
    baseline_trial,
    cheapest_trial_seconds,
    expected_trace_seconds,
    tune_workload,
)
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.autotune.trial import Outcome, error_line
from tfaccel.compat import keras_private
from tfaccel.core.compiled_sizes import MOST_SIZES
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.step_context import Prepared, StepContext
from tfaccel.core.workload import Workload, shapes, sizes_vary
from tfaccel.fit.guarded_step import GuardedStep
from tfaccel.fit.progress import Progress
from tfaccel.fit.step_dispatcher import StepDispatcher
from tfaccel.fit.validation import Validation, serves_validation
from tfaccel.fit.waiting import Waiting
from tfaccel.measure.timing import wait_for
from tfaccel.passes.step_batching import is_watched
from tfaccel.steps.compiled_step import BuiltStep, StepFunction, unheard_traces
from tfaccel.steps.logs import not_finite
from tfaccel.steps.remembered import Memory, TooShort, TracedStep
from tfaccel.steps.repeatable import unrepeatable, unrestorable
from tfaccel.steps.replay import feed, is_plain, kept, pull
from tfaccel.steps.snapshot import Snapshot, build_all, build_used_optimizer
from tfaccel.steps.worker_agreement import agreement_of
from tfaccel.system import notices

# What a plan that the user gave, and nobody measured, is taken to win in validation.
_HOPED_GAIN = 2.0
# Batches kept at most, whatever steps_per_execution is.
_KEPT_BATCHES = 8


def _is_known(specs: list[Any]) -> bool:
    """Whether all batches have one shape, as far as their specs say."""
    return all(isinstance(s, tf.TensorSpec) and s.shape.is_fully_defined() for s in specs)


class Session:
    """Stands in for `model.train_function` from `on_train_begin` to `on_train_end`.

    Args:
        model: compiled, its train function made.
        settings: what the user asked for.
        epochs: epochs of this fit.
        batches_per_epoch: None when unknown.
        on_tuning: told the budget in seconds before trials begin.
        on_report: told once, when it is decided how the training goes on.
        callbacks: those of this fit; None where they can't be seen.
    """

    def __init__(
        self,
        model: keras.Model,
        settings: Options,
        epochs: int,
        batches_per_epoch: int | None,
        on_tuning: Callable[[float], None],
        on_report: Callable[[Report], None],
        callbacks: tuple[keras.callbacks.Callback, ...] | None = (),
    ):
        self.model = model
        self.settings = settings
        self.plan = Plan()
        self._agreement = agreement_of(model.distribute_strategy)
        self._clock = self._agreement.clock(settings.clock)
        self._train_function = StepDispatcher.of(model)
        self.baseline: StepFunction = self._train_function.own
        self._progress = Progress(
            model, epochs, batches_per_epoch, lambda: self._train_function.calls
        )
        self._on_tuning = on_tuning
        self._on_report = on_report
        self._callbacks = callbacks
        self._batches: list[Any] = []
        self._sizes: list[Any] = []  # of all batches that were looked at
        self._many_sizes = False  # as the training has shown since
        self._taken: collections.deque[tuple[Any, ...]] = collections.deque()  # to be fed
        self._seconds: list[float] = []
        self._memory = Memory.of(model, self.baseline)
        # Unless the first step shows it.
        self._trace_seconds = self._memory.trace_seconds
        self._prepared = Prepared()
        self._waiting = Waiting(self._clock)
        self._is_told = True
        self._not_finite: frozenset[str] = frozenset()  # logs that are not under the own step
        self._element_spec: Any = None
        self._accelerated: GuardedStep | None = None
        self._decided = False  # by trials, or by a plan that failed; a short fit decides nothing
        self._validation: Validation | None = None
        self._step: StepFunction = self._first

    @property
    def report(self) -> Report | None:
        """What tuning found; None before."""
        return self._train_function.report

    @report.setter
    def report(self, report: Report | None) -> None:
        self._train_function.report = report

    def start(self) -> None:
        """Takes the place of the model's train function, unless nothing can be done."""
        obstacle = ineligibility(self.model)
        if obstacle:
            self._settle(obstacle)
            return
        self._train_function.run(self._run, on_end=self._remove_validation)

    def leave_if_too_few(self) -> None:
        """Leaves a fit alone from the start that is known to end before anything is decided."""
        traced = keras_private.trace_counter(self.baseline)()
        if self.report is None and self._has_too_few_steps and traced:
            self._settle_too_few(self._progress.steps_to_come or 0)

    @property
    def _has_too_few_steps(self) -> bool:
        """Whether the fit will end before anything is decided."""
        if self.settings.plan is not None:
            return False
        steps = self._agreement.same(self._progress.steps_to_come)  # workers may have fewer batches
        return steps is not None and steps <= COLLECTED_STEPS

    def is_at_most(self, calls: int) -> bool:
        """Whether Keras is known to call the train function no more often than that."""
        steps = self._progress.steps_to_come
        return steps is not None and steps <= calls

    def stop(self) -> None:
        """Gives the train function (and the test function) back."""
        self._train_function.give_back()

    def _remove_validation(self) -> None:
        if self._validation is not None:
            self._validation.remove()

    def finish(self) -> None:
        """The fit has ended."""
        accelerated = self._accelerated
        self.stop()
        if self.report is None and self.settings.plan is None:
            self._settle_too_few(len(self._seconds))
        if self._seconds:
            self._memory.trace_seconds = max(self._memory.trace_seconds, self._seconds[0])
        if accelerated is not None:
            if accelerated.has_run:
                function = accelerated.function
                self._memory.keep(
                    TracedStep(self.plan, self._element_spec, function, self._prepared)
                )
            accelerated.release()
        self._callbacks = ()
        self._batches.clear()

    def _settle_too_few(self, steps: int) -> None:
        self._settle(f"{steps} steps are too few to try anything.")

    def resume(self, earlier: "Session") -> bool:
        """Goes on with what an earlier fit of the same compiled model decided, if it did."""
        same = earlier.model is self.model and earlier.baseline is self.baseline
        if not same or not earlier._decided or self._refuses(earlier.plan, earlier.workload()):
            return False
        self.report, self._decided = earlier.report, True
        self._element_spec, self._prepared = earlier._element_spec, earlier._prepared
        if earlier._accelerated is None:
            self.stop()
        else:
            self._start_plan(earlier.plan, earlier._accelerated.function, earlier.workload())
        return True

    def _refuses(self, plan: Plan, workload: Workload) -> bool:
        """Whether a plan that an earlier fit chose can't serve among this fit's callbacks."""
        workload = dataclasses.replace(workload, callbacks=self._callbacks)
        return any(item.unsupported(workload) for item in plan.passes)

    def begin_epoch(self, epoch: int) -> None:
        """An epoch begins."""
        self._progress.begin_epoch(epoch)
        self._waiting.begin_epoch()
        if self._accelerated is not None:
            self._accelerated.begin_epoch()

    def begin_validation(self) -> None:
        """A validation begins."""
        if self._validation is not None:
            self._validation.begin(self._progress.epochs_left)

    def _run(self, iterator: tf.data.Iterator) -> Any:
        if not is_plain(iterator):
            return self.baseline(iterator)
        self._count_wait(self._waiting.begin_steps())
        if self._taken:
            iterator = self._feed(self._taken.popleft(), iterator)
        if self._waiting.is_over and self._accelerated is None:
            self._leave()
            return self.baseline(iterator)
        return self._step(iterator)

    def _count_wait(self, seconds: float) -> None:
        """The training waited on account of trials."""
        if self.report is not None and seconds > 0:
            total = self.report.tuning_seconds + seconds
            self.report = dataclasses.replace(self.report, tuning_seconds=total)

    def _first(self, iterator: tf.data.Iterator) -> Any:
        self._element_spec = iterator.element_spec
        explicit = self.settings.plan
        if not keras_private.trace_counter(self.baseline)():
            self._build(explicit)
        if explicit is None and self._is_too_short():
            return self.baseline(iterator)
        if explicit is not None and self._remembered(explicit):
            self._decide()
        elif explicit is None or not self.model.built or self._makes_variables(explicit):
            self._step = self._collect
        elif calls := self._calls_to_look_at(explicit):
            self._take(iterator, calls)
            self._decide()
            return self._run(iterator)
        else:
            self._decide()
        return self._step(iterator)

    def _remembered(self, plan: Plan) -> TracedStep | None:
        """The step that an earlier fit of this compiled model traced under a plan."""
        return self._memory.step(plan, self._element_spec)

    def _is_too_short(self) -> bool:
        """Settles where nothing can pay, by what is known before any step is timed."""
        if self._has_too_few_steps:
            self._settle_too_few(self._progress.steps_to_come or 0)
            return True
        settings, workload = self.settings, self.workload()
        steps = workload.steps_to_come
        known = self._memory.too_short(settings.names, is_watched(workload), self._element_spec)
        if known is None or steps is None:
            return False
        workload = dataclasses.replace(workload, step_seconds=known.step_seconds)
        seconds = settings.budget.seconds(workload)
        # A plan from the cache costs its trace alone.
        may_be_cached = settings.cache and steps * known.step_seconds > known.trace_seconds
        if may_be_cached or (known.least is not None and known.least <= seconds):
            return False
        self._settle(too_short(workload, known.least, seconds, settings.budget.max_seconds))
        return True

    def _calls_to_look_at(self, plan: Plan) -> int:
        """Of how many calls a given plan must know the batches before it is begun."""
        workload = self.workload()
        specs = tf.nest.flatten(self._element_spec)
        if workload.num_replicas == 1 and plan.compiles_sizes(workload) and not _is_known(specs):
            return math.ceil(COLLECTED_STEPS / self.model.steps_per_execution)
        return int(plan.needs_batch)

    def _take(self, iterator: tf.data.Iterator, calls: int) -> None:
        """Takes the batches of the next calls out, to look at them; each is fed in its turn."""
        stride = self.model.steps_per_execution
        batches = pull(iterator, calls * stride)
        self._batches.extend(batches)
        self._sizes.extend(map(shapes, batches))
        self._taken.extend(batches[i : i + stride] for i in range(0, len(batches), stride))

    def _build(self, explicit: Plan | None) -> None:
        """Spares the first step a second trace, where Keras's own step is not all that is asked."""
        if explicit is not None and explicit.is_baseline:
            return
        try:
            build_all(self.model, self._element_spec)
        except Exception as error:
            why = error_line(error)
            notices.warn(f"tfaccel leaves all variables to the first step: {why}", stacklevel=2)

    def _makes_variables(self, plan: Plan) -> bool:
        """Whether the user's own step may make some, and must run once before it is looked at."""
        names = ("train_step", "compute_loss", "compute_metrics")
        if plan.needs_batch and keras_private.overridden(self.model, keras.Model, *names):
            return True
        own = keras_private.overridden(self.model, keras.Model, "train_step")
        return own is not None and not all(item.built for item in self.workload().optimizers)

    def _collect(self, iterator: tf.data.Iterator) -> Any:
        """One baseline step that is timed and whose batches are kept."""
        if iterator.element_spec != self._element_spec:
            self._settle("Batches change their kind.")
            return self._step(iterator)
        if len(self._seconds) == COLLECTED_STEPS or (self._seconds and self.settings.plan):
            return self._decided_step(iterator)
        batches = pull(iterator, self.model.steps_per_execution)
        self._sizes.extend(map(shapes, batches))
        begun = self._clock()
        feeding = self._feed(batches, iterator)
        knowable = self.model.built or self.workload().strategy is None
        may_fail = knowable and not self._seconds and self._fallbacks()
        before = self._complete_state(batches[0]) if may_fail else None
        traces = keras_private.trace_counter(self.baseline)
        start, traces_before = self._clock(), traces()
        try:
            # In a loop over models it is called too seldom for TensorFlow's count of traces.
            with unheard_traces():
                logs = self.baseline(feeding)
                wait_for(logs)
        except tf.errors.OpError as error:
            if before is None or not self._use_fallback(before, error):
                raise
            return self._step(self._feed(batches, iterator))
        self._seconds.append(self._clock() - start)
        self._waiting.add(start - begun)
        self._not_finite |= not_finite(logs)
        if len(self._seconds) == 1 and 0 < traces_before == traces():
            self._trace_seconds = self._trace_seconds or expected_trace_seconds(self.model)
        if len(self._batches) < _KEPT_BATCHES:
            self._batches.extend(batches)
        return logs

    def _feed(self, batches: tuple[Any, ...], like: Any) -> Any:
        return feed(batches, like, self.model.distribute_strategy)

    def _complete_state(self, batch: Any) -> Snapshot:
        """Everything that a step which fails half way may have changed, none of it run yet."""
        if not self.model.built:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            tf.function(lambda x: self.model(x, training=True)).get_concrete_function(x)
        build_used_optimizer(self.model)
        return Snapshot.of(self.workload())

    def _fallbacks(self) -> list[Pass]:
        settings = self.settings
        return fallbacks(self.workload(), settings.considered, settings.plan)

    def _use_fallback(self, before: Snapshot, error: Exception) -> bool:
        """Goes on with the only step that runs, if there is one; nothing can be compared."""
        report = fallback(self._fallbacks(), error, self.settings.plan)
        if report is None:
            return False
        before.restore()
        self.model.reset_metrics()
        self.report = report
        self._on_report(report)
        self._start_explicit(report.plan)
        return True

    def _decided_step(self, iterator: tf.data.Iterator) -> Any:
        """Decides, and makes the first step under the choice.

        What that takes longer than a step is what tuning cost. It is told when it is known.
        """
        start, self._is_told = self._clock(), False
        try:
            self._decide()
            logs = self._step(iterator)
            if self.report is not None:
                wait_for(logs)
                usual = min(self._seconds[1:], default=0.0)
                waited = self._clock() - start - usual + self._waiting.taken()
                self.report = dataclasses.replace(self.report, tuning_seconds=max(0.0, waited))
            return logs
        finally:
            self._is_told = True
            if self.report is not None:
                self._on_report(self.report)

    def _announce(self, report: Report) -> None:
        """It is decided how the training goes on."""
        self.report = report
        if self._is_told:
            self._on_report(report)

    def _decide(self) -> None:
        """Enough is known to choose how the training goes on."""
        try:
            if self.settings.plan is not None:
                self._start_explicit(self.settings.plan)
            else:
                self._choose()
        except Exception as error:
            why = error_line(error)
            notices.warn(f"tfaccel gave up and left the training as it is: {why}", stacklevel=2)
            self._settle(f"It could not be accelerated: {why}.")

    def workload(self) -> Workload:
        """What is known of the training by now; the same in all of its processes."""
        alike = [b for b in self._batches if shapes(b) == shapes(self._batches[0])]
        return Workload(
            model=self.model,
            batches=tuple(alike),
            element_spec=self._element_spec,
            steps_to_come=self._agreement.same(self._progress.steps_to_come),
            first_step_seconds=self._seconds[0] if self._seconds else 0.0,
            trace_seconds=self._trace_seconds,
            step_seconds=min(self._seconds[1:], default=0.0),
            callbacks=self._callbacks,
            sizes_vary=self._many_sizes or sizes_vary(self._sizes),
        )

    def _choose(self) -> None:
        """The cache's plan, or a trial of plans, or neither where nothing would pay."""
        workload, settings = self.workload(), self.settings
        key = (
            workload_key(workload, settings.considered, settings.tolerance)
            if settings.cache
            else ""
        )
        known = self._agreement.same(settings.cache.load(key) if settings.cache else None)
        if known is not None and self._use_cached(known, workload):
            return
        seconds = settings.budget.seconds(workload)
        least = cheapest_trial_seconds(workload, settings.names)
        if least is None or least > seconds:
            if workload.steps_to_come is None and self._progress.epochs_left > 1:
                self._step = self._await_length
            else:
                trace = max(workload.first_step_seconds, workload.trace_seconds)
                self._memory.note_too_short(
                    TooShort(
                        settings.names,
                        is_watched(workload),
                        self._element_spec,
                        least,
                        workload.step_seconds,
                        trace,
                    )
                )
                bound = settings.budget.max_seconds
                self._settle(too_short(workload, least, seconds, bound), workload)
            return
        if self._cannot_repeat(workload):
            return
        self._on_tuning(seconds)
        with self._bench(workload) as bench:
            report = tune_workload(
                workload, bench, settings.names, seconds, reserve=settings.reserve
            )
        report = report.with_note(unrestorable(self.baseline, self._replay(workload)))
        worth_keeping = report.complete or not report.plan.is_baseline
        if settings.cache and worth_keeping and self._agreement.is_chief:
            settings.cache.save(key, report)
        self._accept(report, workload, bench)

    def _await_length(self, iterator: tf.data.Iterator) -> Any:
        """Baseline steps until the first epoch has shown how long an epoch is."""
        if self._progress.length_is_known:
            return self._decided_step(iterator)
        return self.baseline(iterator)

    def _accept(self, report: Report, workload: Workload, bench: TrainingTrials) -> None:
        if report.plan.is_baseline:
            self._stay(report)
        else:
            self._announce(report)
            self._waiting.is_expected = True
            self._start_plan(report.plan, bench.step_function(report.plan), workload)

    def _bench(self, workload: Workload) -> TrainingTrials:
        settings = self.settings
        return TrainingTrials(
            workload,
            self.baseline,
            self._clock,
            settings.tolerance,
            self._agreement,
            self._prepared,
        )

    def _replay(self, workload: Workload) -> Any:
        """An iterator over the kept batches, like the one that the step runs on."""
        return iter(kept(workload.batches, self._element_spec, workload.strategy))

    def _cannot_repeat(self, workload: Workload) -> bool:
        """Whether no step may be repeated; then the training stays as it is, with the reason."""
        why = unrepeatable(self.baseline, self._replay(workload))
        if why:
            self._settle(why, workload)
        return bool(why)

    def _use_cached(self, known: Report, workload: Workload) -> bool:
        """Goes on with what won before, if it is faithful here; whether that settles it.

        The cache knows a loss, a layer or a train_step by its name, behind which there may be
        another by now.
        """
        note = "From the cache: this model was tuned on this machine before."
        report = dataclasses.replace(known, tuning_seconds=0.0, note=note, cached=True)
        if known.plan.is_baseline:
            self._stay(report)
            return True
        traced = self._remembered(known.plan)
        needed = 0.0 if traced else _check_seconds(known, workload)
        steps = workload.steps_to_come
        saved = (steps or 0) * workload.step_seconds * (1 - 1 / known.speedup)
        if steps is not None and saved < needed:
            self._settle(f"{note} The rest is too short to pay for {known.plan}.", workload)
            return True
        if traced:
            self._announce(report)
            self._start_plan(known.plan, None, workload)
            return True
        if self._cannot_repeat(workload):
            return True
        with self._bench(workload) as bench:
            trial = bench.check(known.plan, self._clock() + self.settings.budget.max_seconds)
        if trial.outcome is not Outcome.FASTER:
            why = f"tfaccel tunes anew: {known.plan} is in the cache, but does not serve here"
            notices.warn(f"{why}: {trial.reason}", stacklevel=2)
            return False
        self._accept(report, workload, bench)
        return True

    def _start_explicit(self, plan: Plan) -> None:
        """The plan that the user gave, less the passes that can't serve this model."""
        workload = self.workload()
        plan = served(plan, workload)
        if plan.is_baseline:
            self._step = self.baseline
        else:
            self._start_plan(plan, None, workload)

    def _start_plan(self, plan: Plan, traced: BuiltStep | None, workload: Workload) -> None:
        known = self._remembered(plan) if traced is None else None
        if known is not None:
            traced = known.built
            self._prepared.update(known.prepared)
        if traced is None:
            deadline = self._clock() + self.settings.budget.max_seconds
            context = StepContext(workload, prepared=self._prepared)
            plan = prepared(plan, context, self._clock, deadline)
            if plan.is_baseline:
                self._step = self.baseline
                return
        self.plan, self._decided = plan, True
        if traced is not None and traced.held is not None and workload.batches:
            traced.held.widen(workload.batches[0])
        workload = dataclasses.replace(workload, batches=())  # no data is held any longer
        self._batches.clear()
        build_used_optimizer(self.model)
        clock, tolerance = self._clock, self.settings.tolerance
        self._step = self._accelerated = GuardedStep(
            workload,
            plan,
            traced,
            self.baseline,
            clock,
            self.settings.guard,
            self._abandoned,
            self._agreement,
            lambda: self._progress.room,
            self._not_finite,
            None if self.settings.plan is None else self._go_on_for_any_size,
            self._prepared,
        )
        self._train_function.plan = plan
        self._train_function.built = self._accelerated.function
        if serves_validation(plan, workload):
            gain = _HOPED_GAIN if self.report is None else self.report.speedup
            self._validation = Validation(
                workload, plan, gain, tolerance, clock, self._count_wait, self._prepared
            )
            self._validation.install()

    def _abandoned(self) -> None:
        """The plan failed; the user's own step has taken over."""
        self._memory.drop(self.plan, self._element_spec)
        self.plan, self._accelerated = Plan(), None
        self._leave()

    def _go_on_for_any_size(self) -> None:
        """The plan that the user gave, less what XLA would compile for ever more sizes."""
        why = f"batches come in more than {MOST_SIZES} sizes"
        notices.warn(f"tfaccel compiles nothing for each size any longer: {why}", stacklevel=2)
        self._many_sizes, self._prepared = True, Prepared()
        self._remove_validation()
        self.plan, self._accelerated, self._validation = Plan(), None, None
        assert self.settings.plan is not None
        self._start_explicit(self.settings.plan)

    def _leave(self) -> None:
        """Gives the train function back, once the batches that were taken out are used up."""
        if self._taken:
            self._step = self._use_up
        else:
            self.stop()

    def _use_up(self, iterator: tf.data.Iterator) -> Any:
        self._leave()
        return self.baseline(iterator)

    def _settle(self, note: str, workload: Workload | None = None) -> None:
        """The training stays as it is."""
        trials = (baseline_trial(workload or self.workload()),) if self._seconds else ()
        self._stay(Report(trials=trials, plan=Plan(), note=note))

    def _stay(self, report: Report) -> None:
        self._decided = len(report.trials) > 1
        self._step = self.baseline
        self._batches.clear()
        self._waiting.is_expected = self._decided and not report.cached
        if not self._waiting.is_expected:
            self._leave()
        self._announce(report)


def _check_seconds(known: Report, workload: Workload) -> float:
    """What it costs to use a plan from the cache: its trace, and those that compare it."""
    trace = next((t.compile_seconds for t in known.trials if t.plan == known.plan), 0.0)
    own = max(workload.first_step_seconds, workload.trace_seconds)
    return 2 * trace + own if known.plan.changes_step else trace
