"""`tfaccel bench --mode=inference`: predictions, stock Keras against plans and engines."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras

from tfaccel.autotune.report import Report
from tfaccel.cli._command import UsageError
from tfaccel.cli._progress import Progress
from tfaccel.core.plan import Plan
from tfaccel.data.findings import first_line
from tfaccel.inference import accelerate


def measure_predictions(
    model: keras.Model,
    sample: Any,
    plans: Sequence[Plan],
    searches: bool,
    max_seconds: float,
    told: Progress,
    **arguments: Any,
) -> Report:
    """What `tfaccel.accelerate` finds, with plans by name beside it.

    Args:
        model: to predict with.
        sample: as `accelerate` takes it.
        plans: to try by themselves.
        searches: whether to search, too.
        max_seconds: that trials may take.
        told: shows the progress.
        arguments: more of `accelerate`'s.

    Raises:
        UsageError: the model or the sample does not serve.
    """
    reports = []
    usual = {"max_tuning_seconds": max_seconds, "verbose": 0, **arguments}
    try:
        for plan in plans:
            told.stage(f"Trying {plan}")
            reports.append(accelerate(model, sample, plan, **usual).report)
        if searches:
            told.stage("Trying plans and engines", max_seconds)
            reports.append(accelerate(model, sample, **usual).report)
    except (TypeError, ValueError) as error:
        raise UsageError(first_line(error)) from error
    return joined(reports)


def joined(reports: Sequence[Report]) -> Report:
    """One report of several: the last one's, or that of the fastest plan that was chosen.

    Args:
        reports: of the same model and sample, at least one.
    """
    best = max(reports, key=lambda report: report.speedup)
    known = {trial.plan for trial in best.trials}
    more = []
    for report in reports:
        for trial in report.trials:
            if trial.plan not in known:
                known.add(trial.plan)
                more.append(trial)
    seconds = sum(report.tuning_seconds for report in reports)
    return dataclasses.replace(best, trials=(*best.trials, *more), tuning_seconds=seconds)
