"""Passes under which a step may run that fails as it is written."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.workload import Workload
from tfaccel.system.later import later

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.autotune import priors
else:
    priors = later("tfaccel.autotune.priors")


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


def may_help(workload: Workload, settings: Options) -> bool:
    """Whether there may be such a pass, for those who need not know which.

    Args:
        workload: the model and the device.
        settings: what the user asked for.
    """
    named = settings.plan is not None or settings.includes is not None or settings.excludes
    if not named and workload.model.built:
        return True
    # `recompute` refuses what is not built, and `layout` is for this data format alone.
    first = any(getattr(x, "data_format", "") == "channels_first" for x in workload.layers)
    if not named and not first:
        return False
    return bool(fallbacks(workload, settings.considered, settings.plan))


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
