"""What passes keep while a step is traced and run."""

import dataclasses
from typing import Any

from tfaccel.core.workload import Workload


class Prepared(dict[str, Any]):
    """What passes found out before a step was traced, by pass name.

    Kept for every step that is built for the same training.
    """


@dataclasses.dataclass(kw_only=True)
class StepContext:
    """One step that is built under a plan: what its passes read, and where they keep things.

    Args:
        workload: the facts.
        prepared: what passes found out before, shared with other steps.
        scratch: a place for variables that a pass needs from step to step and that must not
            enter the user's model or optimizer, by pass name.
        chooser: while the step is traced, the `tfaccel.ops.kernels.Chooser` for products that
            passes make themselves; None where TensorFlow's ops compute them.
        may_be_empty: whether a batch may have no samples, as those of a training may. Keras
            predicts none such, and convolutions that are sure of samples run faster there:
            TensorFlow applies an activation that is the next layer inside of them.
    """

    workload: Workload = dataclasses.field(kw_only=False)
    prepared: Prepared = dataclasses.field(default_factory=Prepared)
    scratch: dict[str, Any] = dataclasses.field(default_factory=dict)
    chooser: Any = None
    may_be_empty: bool = True
