"""Exact reductions: models written in bfloat16 without sums that add up in bfloat16."""

import contextlib
import dataclasses
from typing import ClassVar

from tfaccel.core.plan import Pass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.passes.precision._exact_sums import exact_sums


@dataclasses.dataclass(frozen=True)
class ExactReductions(Pass):
    """Gradients of biases, and other sums of bfloat16, are rounded once, at their end.

    On CPUs TensorFlow adds up the gradient of a bias in bfloat16, so it is 19 % off for
    32768 rows, and 87 % where they have a mean (convolutions, Dense layers on sequences).
    With this pass it is summed in float32 and rounded once, as products are; so are
    cumulative and segment sums, and without oneDNN's kernels average pooling, depthwise
    convolutions, einsums and softmax. A step takes about as long. The pass `mixed_precision`
    does so by itself; this one is for models whose own policy is bfloat16.

    The original step's gradients are wrong, so those under the pass differ, and a trial would
    find it unfaithful. A search therefore never tries it: name it to use it.

    >>> accel = tfaccel.AccelCallback([tfaccel.passes.ExactReductions()])

    Source: Micikevicius et al., arXiv:1710.03740, section 3.3 (sums in float32).
    """

    name: ClassVar[str] = "exact_reductions"
    tried_by_default: ClassVar[bool] = False

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if workload.device.kind != "CPU":
            return Refusal.NO_USE(f"{workload.device.name} adds up 16 bits in float32 by itself")
        if not any(str(layer.compute_dtype) == "bfloat16" for layer in workload.layers):
            return Refusal.NOTHING("no layer of the model computes in bfloat16")
        return None

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=False,
            reason="it makes no step faster; it makes the gradients of bfloat16 models right",
        )

    def applied(self, context: StepContext) -> contextlib.AbstractContextManager[None]:
        return exact_sums()
