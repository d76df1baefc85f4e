"""What is known of plans before anything is measured: tfaccel/autotune/priors.json.

Reads every trial out of benchmarks/results, with the kinds of work of the model that it was
made on and the class of the machine. Run it when results have changed:

    python benchmarks/priors.py
"""

import functools
import glob
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import _common
import models
from absl import app, flags

from tfaccel.autotune.expected import evidence
from tfaccel.autotune.expected.evidence import Evidence
from tfaccel.autotune.expected.layer_mix import layer_mix
from tfaccel.autotune.report import Report
from tfaccel.core.machine_class import FLAGS, MachineClass
from tfaccel.core.workload import Workload

_OUTPUT = flags.DEFINE_string(
    "output", str(pathlib.Path(evidence.__file__).with_name("priors.json")), "the file to write"
)


def machine_of(facts: dict[str, Any]) -> MachineClass:
    """The class of a machine, from the facts in a file of results."""
    if facts["gpu"]:
        return MachineClass("GPU", (facts["gpu"],), False)
    flags_known = tuple(f for f in FLAGS if f in facts["isa"])
    return MachineClass("CPU", flags_known, bool(facts["onednn"]))


@functools.cache
def mix_of(name: str) -> dict[str, float]:
    """The kinds of work of a benchmark's model."""
    benchmark = next(model for model in models.MODELS if model.name == name)
    batch = next(iter(benchmark.dataset()))
    mix = layer_mix(Workload(benchmark.model(), (batch,)))
    return {kind: round(share, 4) for kind, share in mix.items()}


def rows(path: str) -> Iterator[Evidence]:
    """What one file of results tells."""
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    machine = machine_of(data["machine"])
    for row in data["rows"]:
        # A model written in 16 bits is another model, with the same name.
        if "mixed" in pathlib.Path(path).name or not row.get("tuning"):
            continue
        report = Report.from_json(json.dumps(row["tuning"]))
        yield from evidence.evidence_of(report, machine, mix_of(row["model"]))


def main(_: list[str]) -> None:
    paths = sorted(glob.glob(str(_common.RESULTS / "training-*.json")))
    found = [one for path in paths for one in rows(path)]
    pathlib.Path(_OUTPUT.value).write_text(evidence.to_text(found), encoding="utf-8")
    print(f"{len(found)} trials of {len(paths)} files in {_OUTPUT.value}")


if __name__ == "__main__":
    app.run(main)
