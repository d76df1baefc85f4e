"""A plan that was given and not tried on this training: the passes of it that can serve."""

from tfaccel.autotune.trial import error_line
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import Clock
from tfaccel.system import notices


def served(plan: Plan, workload: Workload) -> Plan:
    """The plan less the passes that refuse the workload; a warning says why."""
    for item in plan.passes:
        try:
            unsupported = item.unsupported(workload)
            why = "" if unsupported is None else str(unsupported)
        except Exception as error:  # a pass of somebody's own, a model like no other
            why = error_line(error)
        if why:
            plan = left_out(plan, item.name, why)
    return plan


def prepared(plan: Plan, context: StepContext, clock: Clock, deadline: float) -> Plan:
    """The plan less the passes that can't get ready; what they found is in the context.

    Args:
        plan: whose passes all serve.
        context: the model and its batches, and where findings are kept.
        clock: seconds.
        deadline: the clock's value at which all should be ready.
    """
    for item in plan.passes:
        try:
            item.prepare(context, plan, clock, deadline)
        except Exception as error:
            plan = left_out(plan, item.name, error_line(error))
    return plan


def left_out(plan: Plan, name: str, why: str) -> Plan:
    """The plan less a pass; a warning says why."""
    item = next(item for item in plan.passes if item.name == name)
    notices.warn(f"tfaccel leaves out {item}: {why}", stacklevel=3)
    return plan.without(name)
