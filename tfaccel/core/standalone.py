"""Passes that take the place of all others, such as an engine that makes the predictions."""

import dataclasses
from collections.abc import Sequence

from tfaccel.core.plan import Pass, Plan
from tfaccel.core.workload import Workload


@dataclasses.dataclass(frozen=True)
class StandalonePass(Pass, is_base=True):
    """A pass that tuning tries by itself, in every configuration that may be the fastest."""

    def variants(self, workload: Workload) -> Sequence[Pass]:
        """The configurations to try on a workload that the pass serves; by default this one."""
        return (self,)


def stands_alone(plan: Plan) -> bool:
    """Whether one of the plan's passes takes the place of all others."""
    return any(isinstance(item, StandalonePass) for item in plan.passes)
