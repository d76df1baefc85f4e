"""Steps that can't run as they are written, and the passes under which they can."""

from collections.abc import Collection, Sequence

from tfaccel import priors
from tfaccel.plan import Pass, Plan
from tfaccel.report import Report
from tfaccel.workload import Workload


def rescuers(workload: Workload, names: Collection[str], plan: Plan | None = None) -> list[Pass]:
    """The passes under which a step may run that can't run here as it is written.

    Args:
        workload: the model and the device.
        names: the passes to consider.
        plan: if given, only its passes are considered.
    """
    items = plan.passes if plan else [item for item, _ in priors.expected(workload, names)]
    able = [item for item in items if type(item).rescues is not Pass.rescues]
    return [item for item in able if item.refusal(workload) is None]


def rescue(items: Sequence[Pass], error: Exception, plan: Plan | None = None) -> Report | None:
    """How to go on where the user's own step has failed; None where nothing helps.

    Args:
        items: the `rescuers`.
        error: what the step raised.
        plan: what the user wants to train under; None for the passes that help.
    """
    reasons = {item: why for item in items if (why := item.rescues(error))}
    if not reasons:
        return None
    note = f"Your own step can't run: {next(iter(reasons.values()))}. Nothing was compared."
    return Report(trials=(), plan=plan or Plan(tuple(reasons)), note=note)
