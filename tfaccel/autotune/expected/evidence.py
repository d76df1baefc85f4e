"""Earlier measurements, on this machine or others, with this model or others."""

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from tfaccel.autotune.expected.layer_mix import distance
from tfaccel.autotune.report import Report
from tfaccel.core.machine_class import MachineClass
from tfaccel.system.json_files import typed

# The factor by which a measurement counts less for a model with no work in common.
_OTHER_WORK = 0.01
_SHIPPED = "priors.json"


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The measurement of one plan.

    Attributes:
        machine: that measured it.
        mix: of the model, as `tfaccel.autotune.expected.layer_mix` has it.
        passes: the names of the plan's passes.
        gain: the speedup over the original step.
        trace: its first step's time over that of the original.
    """

    machine: MachineClass
    mix: Mapping[str, float]
    passes: tuple[str, ...]
    gain: float
    trace: float | None

    def weight(self, machine: MachineClass, mix: Mapping[str, float]) -> float:
        """How much the measurement counts for another model on another machine, from 0 to 1."""
        return self.machine.likeness(machine) * _OTHER_WORK ** distance(self.mix, mix)

    def to_dict(self) -> dict[str, Any]:
        """The measurement as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Evidence":
        """Reads `to_dict`'s values."""
        found = typed(
            cls(
                MachineClass.from_dict(data["machine"]),
                data["mix"],
                tuple(data["passes"]),
                data["gain"],
                data["trace"],
            )
        )
        numbers = (found.gain, *found.mix.values(), found.trace or 0.0)
        if found.gain <= 0 or not all(map(math.isfinite, numbers)):
            raise ValueError(f"a gain and its facts must be finite. Received: {numbers}")
        return found


def evidence_of(report: Report, machine: MachineClass, mix: Mapping[str, float]) -> list[Evidence]:
    """The timed trials of a report as measurements."""
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
    """The measurements of the package, which `make priors` takes from benchmarks/results."""
    text = importlib.resources.files(__package__).joinpath(_SHIPPED).read_text(encoding="utf-8")
    return tuple(map(Evidence.from_dict, json.loads(text)))


def to_text(found: Iterable[Evidence]) -> str:
    """Evidence as JSON text, a line each."""
    lines = (json.dumps(one.to_dict(), sort_keys=True) for one in found)
    return "[\n" + ",\n".join(lines) + "\n]\n"
