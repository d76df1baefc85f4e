"""Passes under which a step may run that fails as it is written."""

from collections.abc import Collection, Sequence

from tfaccel.autotune import priors
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.workload import Workload


def fallbacks(workload: Workload, names: Collection[str], plan: Plan | None = None) -> list[Pass]:
    """The passes under which a step may run that fails here as it is written.

    Args:
        workload: the model and the device.
        names: the passes to consider.
        plan: if given, only its passes are considered.
    """
    items = plan.passes if plan else [item for item, _ in priors.expected(workload, names)]
    able = [item for item in items if type(item).fallback_reason is not Pass.fallback_reason]
    return [item for item in able if item.unsupported(workload) is None]


def fallback(items: Sequence[Pass], error: Exception, plan: Plan | None = None) -> Report | None:
    """How to go on where the user's own step has failed; None where nothing helps.

    Args:
        items: the `fallbacks`.
        error: what the step raised.
        plan: what the user wants to train under; None for the passes that help.
    """
    reasons = {item: why for item in items if (why := item.fallback_reason(error))}
    if not reasons:
        return None
    note = f"Your own step can't run: {next(iter(reasons.values()))}. Nothing was compared."
    return Report(trials=(), plan=plan or Plan(tuple(reasons)), note=note)
