"""The result of trying one plan."""

import dataclasses
import re

import keras

from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics
from tfaccel.measure.numerics import SIXTEEN_BITS, Drift
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup

# A gain below this share is not worth another set of roundings.
WORTHWHILE = 1.02
# What the first step takes for each layer, and for each variable that is trained. Measured on
# two cores of a Zen 3: 0.18 to 0.23 s a trained variable in all, under Adam
# (benchmarks/results/training-*.md), of which simpler optimizers take half.
_LAYER_TRACE_SECONDS = 0.02
_UPDATE_TRACE_SECONDS = 0.1
# How the reason of a trial begins that ran out of memory.
OUT_OF_MEMORY = "out of memory"
# Keras prints parts of its errors in bold. It says first in which `call` one came up, and
# TensorFlow in which node, with the stack from where that was made.
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WHERE = re.compile(
    r"Exception encountered when calling|Graph execution error|Detected at node"
    r"|<stack traces unavailable>|File \".*\", line \d+, in "
)


@dataclasses.dataclass(frozen=True)
class Trial:
    """The result of trying one plan.

    Attributes:
        plan: the plan.
        outcome: how it ended.
        reason: why, in one clause; names the layer, bound or error.
        compile_seconds: the first step's time, less one step: tracing and compiling.
        step_seconds: the median step once traced; None where it was not timed.
        speedup: against baseline steps timed in between; None where not timed.
        drift: the differences from the untouched step; None where not compared.
        peak_memory_bytes: the device's peak during the trial; for predictions on a CPU the growth
            of the process; None where not measured.
        findings: what the passes found out about the layers before the trace, a line each.
        predicted_gain: the speedup that was expected of the plan; None where nothing was.
        latency_seconds: of predictions, the times that 50, 90 and 99 of 100 calls keep within.
        top1_agreement: of classifiers, the share of samples with the untouched model's class.
        disk_bytes: its size on disk; None where it was not saved.
        metric: of predictions, the user's metric on labelled samples; None without labels.
        refusal: the kind of the reason why a plan can't serve; None for others.
    """

    plan: Plan
    outcome: Outcome
    reason: str = ""
    compile_seconds: float = 0.0
    step_seconds: float | None = None
    speedup: Speedup | None = None
    drift: Drift | None = None
    peak_memory_bytes: int | None = None
    findings: tuple[str, ...] = ()
    predicted_gain: float | None = None
    latency_seconds: tuple[float, float, float] | None = None
    top1_agreement: float | None = None
    disk_bytes: int | None = None
    metric: float | None = None
    refusal: Refusal | None = None

    @classmethod
    def refused(cls, plan: Plan, why: Unsupported) -> "Trial":
        """The trial of a plan that can't serve, and was not tried."""
        outcome = Outcome.IRRELEVANT if why.kind is Refusal.NOTHING else Outcome.REFUSED
        return cls(plan, outcome, str(why), refusal=why.kind)

    @property
    def was_tried(self) -> bool:
        """Whether the plan was traced, or tried to be."""
        return self.outcome not in (Outcome.REFUSED, Outcome.IRRELEVANT)

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the plan needs more memory than there is."""
        return self.outcome is Outcome.FAILED and self.reason.startswith(OUT_OF_MEMORY)


def compute_dtype(plan: Plan, workload: Workload) -> str:
    """The dtype that a plan's products are computed in on this workload."""
    chosen = [item.compute_dtype(workload) for item in plan.passes]
    return next((dtype for dtype in chosen if dtype), str(workload.model.compute_dtype))


def rounded_dtype(plan: Plan, workload: Workload) -> str | None:
    """The 16-bit dtype in which a plan computes what the user's own step does not."""
    chosen = (item.compute_dtype(workload) for item in plan.passes)
    return next((dtype for dtype in chosen if dtype in SIXTEEN_BITS), None)


def coarsest_dtype(plan: Plan, workload: Workload) -> str:
    """The least precise dtype of what is compared: a plan's, and the user's own layers'."""
    computing = (x for x in workload.layers if not isinstance(x, keras.layers.InputLayer))
    dtypes = {compute_dtype(plan, workload), *(str(layer.compute_dtype) for layer in computing)}
    known = [dtype for dtype in dtypes if dtype in numerics.TOLERANCES]
    return max(known, key=lambda dtype: numerics.TOLERANCES[dtype].output, default="float32")


def error_line(error: Exception) -> str:
    """The error's class, and the first line of its message that is not a location."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    lines = [line for line in lines if not _WHERE.match(line)] or lines
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def baseline_trial(workload: Workload) -> Trial:
    """The untouched step as the first row of every report."""
    return Trial(
        Plan(),
        Outcome.BASELINE,
        compile_seconds=max(0.0, workload.first_step_seconds - workload.step_seconds),
        step_seconds=workload.step_seconds,
        speedup=Speedup(),
    )


def expected_trace_seconds(model: keras.Model) -> float:
    """A guess at what the first step of a model takes, for one that was traced unseen."""
    layers = len(keras_private.flatten_layers(model))
    trained = len(model.trainable_variables)
    return _LAYER_TRACE_SECONDS * layers + _UPDATE_TRACE_SECONDS * trained
