"""How much a training step computes, and how much the device could."""

import dataclasses
from typing import Any

import keras

from tfaccel.autotune.trial import compute_dtype
from tfaccel.core.plan import Plan
from tfaccel.core.replicas import local_batches
from tfaccel.core.workload import Workload
from tfaccel.profiling.flops.counting import model_flops_per_step
from tfaccel.profiling.peaks import peak_flops
from tfaccel.system import notices


@dataclasses.dataclass(frozen=True)
class Work:
    """How much a step computes, and how much the device could."""

    flops_per_step: int | None = None  # the model's; None where they can't be counted
    peak_flops_per_second: float | None = None  # the device's; None where it is unknown
    peak_source: str | None = None  # where that figure is from

    def utilization(self, batches_per_second: float | None) -> float | None:
        """Model FLOPs utilization (MFU): useful FLOP/s over the device's peak.

        Source: PaLM, https://arxiv.org/abs/2204.02311, appendix B.
        """
        if not (self.flops_per_step and self.peak_flops_per_second and batches_per_second):
            return None
        return self.flops_per_step * batches_per_second / self.peak_flops_per_second


def work_of(model: keras.Model, batch: Any, plan: Plan) -> Work:
    """Counts the model's FLOPs on a batch, and looks the device's peak up (measures a CPU's).

    A failure leaves a figure out, and never ends the training.
    """
    workload = Workload(model)
    try:
        flops = model_flops_per_step(model, local_batches(batch)[0])
        peak = peak_flops(workload.device, compute_dtype(plan, workload))
    except Exception as error:
        notices.warn(f"tfaccel could not count FLOPs: {error!r}", RuntimeWarning, stacklevel=2)
        return Work()
    replicas = workload.num_replicas
    flops = None if flops is None else flops * replicas
    if peak is None:
        return Work(flops)
    # Logical CPUs share the cores that were measured together.
    devices = replicas if workload.device.kind == "GPU" else 1
    source = f"{devices} times: {peak.source}" if devices > 1 else peak.source
    return Work(flops, devices * peak.flops_per_second, source)
