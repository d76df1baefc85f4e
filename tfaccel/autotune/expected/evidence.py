"""What was measured before, on this machine or another, with this model or another."""

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from tfaccel.autotune.expected.layer_mix import distance
from tfaccel.autotune.report import Report
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.system.device import Device

# What tells one class of machines from another, as /proc/cpuinfo writes it.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16")
# How much less a measurement counts with each step away: another instruction set, the other
# kernels of TensorFlow, another kind of device, and a model with no work in common.
_OTHER_FLAGS, _OTHER_KERNELS, _OTHER_DEVICE, _OTHER_WORK = 0.5, 0.3, 0.01, 0.01
_SHIPPED = "priors.json"


@dataclasses.dataclass(frozen=True)
class Machine:
    """The class of a machine: what decides which plans win on it.

    Attributes:
        kind: `"CPU"` or `"GPU"`.
        flags: instruction sets that matter; a GPU's compute capability.
        onednn: whether TensorFlow runs oneDNN's kernels.
    """

    kind: str
    flags: tuple[str, ...]
    onednn: bool

    @classmethod
    def of(cls, device: Device) -> "Machine":
        """The class of the machine that a device is in."""
        if device.kind == "GPU":
            return cls("GPU", (str(device.compute_capability),), False)
        return cls("CPU", tuple(f for f in FLAGS if f in device.flags), bool(onednn_is_on()))

    def likeness(self, other: "Machine") -> float:
        """1.0 for the same class, less for others."""
        if self.kind != other.kind:
            return _OTHER_DEVICE
        apart = len({*self.flags} ^ {*other.flags})
        kernels = 1.0 if self.onednn == other.onednn else _OTHER_KERNELS
        return kernels * _OTHER_FLAGS ** min(apart, 3)


@dataclasses.dataclass(frozen=True)
class Evidence:
    """One plan that was timed.

    Attributes:
        machine: where.
        mix: of the model, as `tfaccel.autotune.expected.layer_mix` has it.
        passes: the names of the plan's passes.
        gain: the speedup over the original step.
        trace: its first step's time over that of the original.
    """

    machine: Machine
    mix: Mapping[str, float]
    passes: tuple[str, ...]
    gain: float
    trace: float | None

    def weight(self, machine: Machine, mix: Mapping[str, float]) -> float:
        """How much it says of another model on another machine, from 0 to 1."""
        return self.machine.likeness(machine) * _OTHER_WORK ** distance(self.mix, mix)

    def to_dict(self) -> dict[str, Any]:
        """It as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evidence":
        """Reads `to_dict`'s values."""
        machine = data["machine"]
        return cls(
            Machine(machine["kind"], tuple(machine["flags"]), machine["onednn"]),
            data["mix"],
            tuple(data["passes"]),
            data["gain"],
            data["trace"],
        )


def evidence_of(report: Report, machine: Machine, mix: Mapping[str, float]) -> list[Evidence]:
    """What the timed trials of a report show."""
    baseline, *trials = report.trials or (None,)
    if baseline is None:
        return []
    own = baseline.compile_seconds
    found = []
    for trial in trials:
        gain = trial.speedup.median if trial.speedup else None
        if gain is None and trial.step_seconds and baseline.step_seconds:
            gain = baseline.step_seconds / trial.step_seconds  # stopped for being slow
        if gain and math.isfinite(gain) and gain > 0:
            trace = trial.compile_seconds / own if own > 0 and trial.compile_seconds > 0 else None
            rounded = None if trace is None else round(trace, 3)
            found.append(Evidence(machine, mix, trial.plan.names, round(gain, 3), rounded))
    return found


@functools.cache
def shipped() -> tuple[Evidence, ...]:
    """What comes with the package: `make priors` reads it out of benchmarks/results."""
    text = importlib.resources.files(__package__).joinpath(_SHIPPED).read_text(encoding="utf-8")
    return tuple(map(Evidence.from_dict, json.loads(text)))


def to_text(found: Iterable[Evidence]) -> str:
    """Evidence as JSON text, a line each."""
    lines = (json.dumps(one.to_dict(), sort_keys=True) for one in found)
    return "[\n" + ",\n".join(lines) + "\n]\n"
