"""What is known before anything is measured: of plans, and of kernels.

Reads every trial out of benchmarks/results, with the kinds of work of the model that it was
made on and the class of the machine, into tfaccel/autotune/expected/priors.json; and every
kernel's speedup, with the call, into tfaccel/ops/kernels/measured.json. Run it when results have
changed:

    python benchmarks/priors.py
"""

import dataclasses
import functools
import glob
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import _common
import models
from absl import app, flags

import tfaccel.passes  # noqa: F401  reports name passes
from tfaccel.autotune.expected import evidence
from tfaccel.autotune.expected.evidence import Evidence
from tfaccel.autotune.expected.layer_mix import layer_mix
from tfaccel.autotune.report import Report
from tfaccel.core.machine_class import FLAGS, MachineClass
from tfaccel.core.workload import Workload
from tfaccel.ops import api
from tfaccel.ops.kernels import REFERENCE, CallSpec, Measured, measured_text

_OUTPUT = flags.DEFINE_string(
    "output", str(pathlib.Path(evidence.__file__).with_name("priors.json")), "the file to write"
)
_KERNELS = flags.DEFINE_string(
    "kernels", str(pathlib.Path(api.__file__).parent / "kernels" / "measured.json"), "likewise"
)
_TIMED = re.compile(r"(\w+) ([\d.]+)x$")
# Traces there are told in first steps of a process that has traced the model before, which take
# half of what they take in a fit: ResNet50's 5.3 s and 15.7, MobileNetV2's 4.2 and 10.3.
_OF_A_FIT = 0.5
# Until then a fit's first step was traced twice, as stock Keras's is, so that traces of plans
# seemed half as long beside it.
_TRACED_ONCE = "2026-11-21T20:02"
# Kernels that were called otherwise when they were measured.
_NOW = {"turned": "transposed", "fused_taps": "fused_offsets"}


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


def trained(path: str) -> Iterator[Evidence]:
    """What one file of steady steps tells."""
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    machine = machine_of(data["machine"])
    for row in data["rows"]:
        # A model written in 16 bits is another model, with the same name.
        if "mixed" in pathlib.Path(path).name or not row.get("tuning"):
            continue
        report = Report.from_json(json.dumps(row["tuning"]))
        for one in evidence.evidence_of(report, machine, mix_of(row["model"])):
            traces = 2 if row["date"] < _TRACED_ONCE else 1
            trace = None if one.trace is None else round(traces * _OF_A_FIT * one.trace, 3)
            yield dataclasses.replace(one, trace=trace)
        yield from _static(row, machine)


def _static(row: dict[str, Any], machine: MachineClass) -> Iterator[Evidence]:
    """Keras's own settings, which are what two passes do when they are alone."""
    for setting, found in (row.get("static") or {}).items():
        name = "xla" if setting == "jit_compile" else "mixed_precision"
        gain = row["speedup"] / found["slower_by"][0]
        yield Evidence(machine, mix_of(row["model"]), (name,), round(gain, 3), None)


def fitted(path: str) -> Iterator[Evidence]:
    """What one file of whole fits tells: traces, too, as a user waits for them."""
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    machine = machine_of(data["machine"])
    for row in data["rows"]:
        for one in row.get("fits", {}).get("empty cache", ()):
            report = Report.from_json(json.dumps(one["report"]))
            yield from evidence.evidence_of(report, machine, mix_of(row["model"]))


def calls(path: str) -> Iterator[Measured]:
    """What one file of kernels' times tells, each call once."""
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    machine = machine_of(data["machine"])
    found = (measured_of(row, machine) for row in data["rows"])
    yield from {one.spec: one for one in found}.values()


def measured_of(row: dict[str, Any], machine: MachineClass) -> Measured:
    """What one row of such a file tells."""
    seconds = row["tensorflow_seconds"]
    timed = (_TIMED.match(text) for text in row["others"])
    speedups = {one[1]: float(one[2]) for one in timed if one}
    if row["kernel"] != REFERENCE:
        speedups[row["kernel"]] = round(seconds / row["seconds"], 2)
    kept = {_NOW.get(name, name): max(gain, 0.01) for name, gain in speedups.items()}
    return Measured(machine, call_of(row["call"], row["direction"]), float(f"{seconds:.3g}"), kept)


def call_of(text: str, direction: str) -> CallSpec:
    """The call that a results file names."""
    (op, x, _, w), *marks, dtype = (part.split() for part in text.split(", "))
    rank = 0 if op == "matmul" else x.count("x") - 1
    facts: dict[str, Any] = {"strides": (1,) * rank, "dilation": (1,) * rank}
    for mark in marks:
        match mark:
            case ["stride", sizes]:
                facts["strides"] = _sizes(sizes)
            case ["dilation", sizes]:
                facts["dilation"] = _sizes(sizes)
            case [count, "groups"]:
                facts["groups"] = int(count)
            case [padding]:
                facts["padding"] = padding
    way: Any = direction.replace(" ", "_")
    spec = CallSpec(op, way, dtype[0], _sizes(x), _sizes(w), **facts)
    if str(spec) != text:
        raise ValueError(f"{text!r} was read as {spec}")
    return spec


def _sizes(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("x")))


def _files(pattern: str) -> list[str]:
    return sorted(glob.glob(str(_common.RESULTS / pattern)))


def main(_: list[str]) -> None:
    steady, whole = (_files(f"{kind}-*.json") for kind in ("training", "whole-fit"))
    found = [one for path in steady for one in trained(path)]
    found += [one for path in whole for one in fitted(path)]
    pathlib.Path(_OUTPUT.value).write_text(evidence.to_text(found), encoding="utf-8")
    print(f"{len(found)} trials of {len(steady) + len(whole)} files in {_OUTPUT.value}")
    paths = _files("kernels-*.json")
    known = [one for path in paths for one in calls(path)]
    pathlib.Path(_KERNELS.value).write_text(measured_text(known), encoding="utf-8")
    print(f"{len(known)} calls of {len(paths)} files in {_KERNELS.value}")


if __name__ == "__main__":
    app.run(main)
