"""The one way from a workload to a plan in the cache."""

import dataclasses

from tfaccel.autotune.expected.evidence import Evidence, evidence_of, shipped
from tfaccel.autotune.expected.layer_mix import layer_mix
from tfaccel.autotune.options import Options
from tfaccel.autotune.plan_cache import workload_key
from tfaccel.autotune.report import Report
from tfaccel.autotune.search import OnTrial, tune_workload
from tfaccel.autotune.trial_runner import TrialRunner
from tfaccel.core.machine_class import MachineClass
from tfaccel.core.workload import Workload
from tfaccel.steps.worker_agreement import WorkerAgreement


def known_report(
    workload: Workload, settings: Options, agreement: WorkerAgreement | None = None
) -> Report | None:
    """The report that the cache has of a workload; None without one that decides.

    Args:
        workload: with at least one kept batch.
        settings: what the user asked for.
        agreement: of the processes that train together, all of which must call this together.
    """
    cache = settings.cache
    known = cache.load(_key(workload, settings)) if cache else None
    if known is not None and not decides(known):
        known = None
    return (agreement or WorkerAgreement()).same(known)


def tune_and_cache(
    bench: TrialRunner,
    settings: Options,
    on_trial: OnTrial = lambda trial: None,
    note: str = "",
) -> Report:
    """Tries plans within the user's budget, and keeps the report in the cache if it decides.

    It does not look at the cache first: see `known_report`.

    Args:
        bench: the workload set up for trials, entered.
        settings: what the user asked for.
        on_trial: called with each trial.
        note: one more sentence for the report.

    Returns:
        The report, as it is kept. Its first trial is the baseline.
    """
    workload = bench.workload
    seconds = settings.budget.seconds(workload)
    report = tune_workload(workload, bench, settings.names, seconds, on_trial, settings.reserve)
    report = dataclasses.replace(report, predicts=not workload.training).with_note(note)
    if decides(report):
        keep(workload, settings, report, bench.agreement)
    return report


def keep(workload: Workload, settings: Options, report: Report, agreement: WorkerAgreement) -> None:
    """Keeps a report in the cache: a plan for the same workload, and evidence for others."""
    if settings.cache and agreement.is_chief and len(report.tried()) > 1:
        machine, mix = MachineClass.of(workload.device), layer_mix(workload)
        evidence = evidence_of(report, machine, mix) if workload.training else []
        settings.cache.save(_key(workload, settings), report, evidence)


def known_evidence(settings: Options) -> list[Evidence]:
    """The measurements of this machine, and those of the package."""
    return [*(settings.cache.evidence() if settings.cache else ()), *shipped()]


def decides(report: Report) -> bool:
    """Whether a report may stand in for a search: it was complete, or a plan has won.

    A search that ran out of time before anything won says nothing about the next one, which may
    have more time.
    """
    return report.complete or not report.plan.is_baseline


def _key(workload: Workload, settings: Options) -> str:
    return workload_key(workload, settings.considered, settings.tolerance)
