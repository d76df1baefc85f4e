"""Measuring plans on one device for `tfaccel bench`."""

import dataclasses
import time
from collections.abc import Iterator
from typing import Any, cast

import keras

from tfaccel.autotune import priors
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.report import Report
from tfaccel.autotune.search import trial_seconds, tune_workload
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.autotune.trial import Trial, baseline_trial
from tfaccel.cli._bench_result import BenchRow
from tfaccel.cli._progress import Progress
from tfaccel.cli.inputs.feeds import Feed
from tfaccel.core.plan import Plan
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.racing import Race
from tfaccel.measure.timing import Clock, Speedup, median_interval
from tfaccel.passes import PASSES

NAMES = tuple(item.name for item in PASSES)


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which plans to measure."""

    search: bool  # whether the tuner looks for the best one
    each: bool  # whether each pass is tried alone
    plans: tuple[Plan, ...] = ()  # others


class RecordingBench(TrainingTrials):
    """A bench that keeps the times behind each trial's median."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.baseline_seconds: list[float] = []
        self.seconds: dict[Plan, list[float]] = {}
        self._latest: list[float] = []

    def try_plan(self, plan: Plan, deadline: float = float("inf")) -> Trial:
        """A trial, with its times kept."""
        self._latest = []
        trial = super().try_plan(plan, deadline)
        self.seconds[plan] = self._latest
        return trial

    def time_again(self, plan: Plan, deadline: float = float("inf")) -> Speedup:
        """Times a plan anew; these times replace those by which it was chosen."""
        gain = super().time_again(plan, deadline)
        self.seconds[plan] = self._latest
        return gain

    def race(self, plan: Plan, deadline: float, fewest: int = 0, step_seconds: float = 0.0) -> Race:
        race, steps = super().race(plan, deadline, fewest, step_seconds), plan.steps_per_call
        self.baseline_seconds += [turn / steps for turn in race.baseline_seconds]
        self._latest = [turn / steps for turn in race.candidate_seconds]
        return race


def measure(
    model: keras.Model,
    feed: Feed,
    wanted: Wanted,
    max_seconds: float,
    told: Progress,
    clock: Clock = time.perf_counter,
) -> tuple[list[BenchRow], list[str]]:
    """Stock Keras against other plans, on the device that TensorFlow takes.

    The tuner goes first, so that it has the time that it has in a training; then
    come the plans asked for, and each pass alone where the tuner did not try it.

    Args:
        model: compiled. It is afterwards what it was.
        feed: what to train on.
        wanted: which plans.
        max_seconds: that trials may take; the steps of stock Keras come on top.
        told: shows the progress.
        clock: seconds.

    Returns:
        A row for each plan, the baseline first; and notes.
    """
    told.stage("Running stock Keras")
    with offline_trials(model, feed.dataset, clock=clock, kind=RecordingBench) as entered:
        bench = cast(RecordingBench, entered)
        deadline = clock() + max_seconds
        told.stage("Trying plans", max_seconds)
        report = None
        if wanted.search:
            report = tune_workload(bench.workload, bench, NAMES, max_seconds, told.trial)
        trials = list(report.trials) if report else [baseline_trial(bench.workload)]
        notes = [_chosen_sentence(report)] if report else []
        for plan in _others(wanted, bench, {trial.plan for trial in trials}):
            needed, left = trial_seconds(plan, bench.workload), max(deadline - clock(), 0.0)
            if needed > left:
                notes.append(
                    f"Not tried for want of time: {plan} (about {needed:.0f} s, {left:.0f} s left)."
                )
                continue
            trials.append(bench.try_plan(plan, deadline))
            bench.forget(plan)
            told.trial(trials[-1])
    kind = bench.workload.device.kind
    samples = feed.batch_size * model.steps_per_execution
    rows = [_row(kind, trial, bench, samples, report) for trial in trials]
    return rows, notes


def _others(wanted: Wanted, bench: TrainingTrials, tried: set[Plan]) -> Iterator[Plan]:
    """The plans that the tuner did not try."""
    alone = [Plan((item,)) for item, _ in priors.expected(bench.workload, NAMES)]
    for plan in (*wanted.plans, *(alone if wanted.each else ())):
        if plan not in tried:
            tried.add(plan)
            yield plan


def _chosen_sentence(report: Report) -> str:
    said = f"The tuner chose {'stock Keras' if report.plan.is_baseline else report.plan}"
    gain = "" if report.plan.is_baseline else f": {report.gain}, measured anew"
    return f"{said}{gain}.{' ' if report.note else ''}{report.note}"


def _row(
    device: str, trial: Trial, bench: RecordingBench, samples: int, report: Report | None
) -> BenchRow:
    chosen = report is not None and trial.plan == report.plan
    is_baseline = trial.outcome is Outcome.BASELINE
    seconds = bench.baseline_seconds if is_baseline else bench.seconds.get(trial.plan)
    median, low, high = median_interval(seconds) if seconds else (trial.step_seconds, None, None)
    gain = report.gain if report is not None and chosen else trial.speedup
    return BenchRow(
        device=device,
        plan=str(trial.plan),
        verdict="chosen" if chosen else trial.outcome.value,
        reason=trial.reason,
        step_seconds=median,
        step_seconds_interval=None if low is None or high is None else (low, high),
        samples_per_second=samples / median if median else None,
        speedup=gain.median if gain else None,
        speedup_interval=(gain.low, gain.high) if gain else None,
        compile_seconds=trial.compile_seconds,
        drift=trial.drift.gradient if trial.drift else None,
        peak_bytes=trial.peak_memory_bytes,
    )
