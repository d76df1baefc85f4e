"""The numbers of a training, as records."""

import dataclasses
import math
import sys
from typing import Any

import tensorflow as tf

from tfaccel.measure.racing import LOOKS
from tfaccel.measure.timing import Speedup
from tfaccel.profiling.growth import Growth, Trend
from tfaccel.profiling.ledger import Ledger
from tfaccel.profiling.meter import Meter
from tfaccel.profiling.outcome import IN_INTERVALS
from tfaccel.profiling.sampling import WorkerInput
from tfaccel.profiling.scaling import Scaling
from tfaccel.profiling.tally import Tally
from tfaccel.profiling.work import Work

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def host_peak_bytes() -> int | None:
    """The most memory that this process has held so far; None where the system does not tell.

    Source: getrusage(2): `ru_maxrss` is in KiB on Linux and in bytes on macOS.
    """
    if resource is None:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_peak_bytes() -> int | None:
    """The most memory that TensorFlow has held on the first GPU; None without a GPU.

    Source: https://www.tensorflow.org/api_docs/python/tf/config/experimental/get_memory_info
    """
    if not tf.config.list_logical_devices("GPU"):
        return None
    return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])


@dataclasses.dataclass(frozen=True)
class Figures:
    """Everything that is measured in a fit, at one moment."""

    meter: Meter  # runs the steps
    ledger: Ledger  # adds them up
    # The FLOPs of a step, and the device's peak.
    work: Work = Work()  # noqa: RUF009 (frozen)
    analysis_seconds: float = 0.0  # that finding `work` took
    loss_scale: float | None = None  # float16's; None for other dtypes
    growth: Growth = dataclasses.field(default_factory=Growth)  # of memory
    steps_per_epoch: int | None = None  # None where unknown
    # The times of one replica alone.
    scaling: Scaling = Scaling()  # noqa: RUF009 (frozen)
    worker_input: WorkerInput | None = None  # None before the end, and without several workers

    @property
    def scaling_efficiency(self) -> float | None:
        """Of the replicas; None for one, or where a step waits for input instead."""
        tally = self.ledger.total
        return None if tally.is_input_bound else self.scaling.efficiency(tally.median_seconds)

    @property
    def speedup(self) -> Speedup | None:
        """The live one; None where nothing was compared, or a faster step would wait for input."""
        return None if self.ledger.total.is_input_bound else self.ledger.live.speedup

    @property
    def interval_ends(self) -> tuple[float | None, float | None]:
        """The ends of the speedup's 95 % interval; None with too few pairs for one."""
        gain = self.speedup
        enough = gain is not None and gain.pairs >= LOOKS[0]
        return (gain.low, gain.high) if gain is not None and enough else (None, None)

    @property
    def overhead_share(self) -> float | None:
        """The cost of measuring, as a share of the time of all steps."""
        ledger = self.ledger
        cost = ledger.live.cost_seconds + ledger.live.trace_seconds + ledger.profiler_seconds
        cost += self.meter.sampling.cost_seconds + self.analysis_seconds
        return cost / ledger.elapsed_seconds if ledger.elapsed_seconds else None

    @property
    def break_even_steps(self) -> int | None:
        """Steps after which tuning is paid back at the speedup measured; None for never."""
        gain, usual = self.speedup, self.ledger.total.median_seconds
        if gain is None or usual is None or gain.median <= 1.0 or not self.ledger.tuning_seconds:
            return None
        return math.ceil(self.ledger.tuning_seconds / (usual * (gain.median - 1.0)))

    def interval(self, epoch: int, tally: Tally) -> dict[str, Any]:
        """The `interval` record of a tally. Keys with a slash are those that TensorBoard shows."""
        facts = self._facts(tally) | {"steps": self.ledger.steps}
        shown = {key: facts[name] for name, key in IN_INTERVALS.items()}
        length = {"seconds": tally.wall_seconds, "steps": tally.batches}
        return {"kind": "interval", "epoch": epoch} | length | shown

    def summary(self) -> dict[str, Any]:
        """The `summary` record, less its `kind`."""
        ledger, workers = self.ledger, self.worker_input
        return self._facts(ledger.total) | {
            "steps": ledger.steps,
            "seconds": ledger.elapsed_seconds,
            "replicas": self.scaling.replicas,
            "one_replica_step_ms": _milliseconds(self.scaling.alone_seconds),
            "scaling_efficiency": self.scaling_efficiency,
            "worker_input_wait_shares": None if workers is None else list(workers.shares),
            "worker_input_advice": None if workers is None else workers.advice,
            "comparisons": len(ledger.live.pairs),
            "first_step_seconds": ledger.first_step_seconds,
            "compile_seconds": ledger.compile_seconds,
            "tuning_seconds": ledger.tuning_seconds,
            "break_even_steps": self.break_even_steps,
            "flops_per_step": self.work.flops_per_step,
            "peak_flops_per_second": self.work.peak_flops_per_second,
            "peak_source": self.work.peak_source,
            "compiles": ledger.compiles,
            "retrace_causes": ledger.retraces.to_list(),
            "overhead_share": self.overhead_share,
        }

    def _facts(self, tally: Tally) -> dict[str, Any]:
        """The facts that intervals and the summary share, by the summary's keys."""
        gain, (low, high) = self.speedup, self.interval_ends
        return {
            "plan": str(self.ledger.plan),
            "step_ms": _milliseconds(tally.median_seconds),
            "step_ms_p95": _milliseconds(tally.p95_seconds),
            "batches_per_sec": tally.batches_per_second,
            "samples_per_sec": tally.samples_per_second,
            "input_wait_share": tally.input_wait_share,
            "input_bound": tally.is_input_bound,
            "mfu": self.work.utilization(tally.batches_per_second),
            "speedup": gain and gain.median,
            "speedup_low": low,
            "speedup_high": high,
            "peak_bytes": device_peak_bytes(),
            "host_peak_bytes": host_peak_bytes(),
            "loss_scale": self.loss_scale,
            "traces": self.ledger.traces,
            "retraces": self.ledger.retraces.count,
            **self._memory("host", self.growth.host),
            **self._memory("device", self.growth.device),
        }

    def _memory(self, name: str, went: Trend) -> dict[str, Any]:
        slope, steps = went.bytes_per_step, self.steps_per_epoch
        return {
            f"{name}_bytes": went.bytes,
            f"{name}_growth_bytes_per_step": slope,
            f"{name}_growth_bytes_per_epoch": None if slope is None or not steps else slope * steps,
            f"{name}_memory": went.verdict,
        }


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1e3
