"""Records of a run, and the page that is made of them."""

import json

from command_line import call

from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.cli.report import COMMAND
from tfaccel.core.plan import Plan
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.passes import XLA, FusedNorm

RATIOS = [1.30, 1.50, 1.42, 1.36, 1.34, 1.45, 1.31, 1.38]
TUNED = Report(
    trials=(
        Trial(Plan(), Outcome.BASELINE, "", 2.0, 0.0222, Speedup()),
        Trial(Plan((FusedNorm(),)), Outcome.REFUSED, "no layer <normalises> & so on"),
        Trial(Plan((XLA(),)), Outcome.FASTER, "", 3.5, 0.0163, Speedup(1.37, 1.32, 1.67, 9)),
    ),
    plan=Plan((XLA(),)),
    gain=Speedup(1.36, 1.31, 1.66, 9),
    tuning_seconds=13.25,
)
RUN = {
    "kind": "run",
    "schema": 1,
    "started": "2026-11-21T02:00:00+00:00",
    "machine": {
        "cpu": "AMD EPYC 9B45",
        "cores": 2,
        "isa": ["avx2", "fma"],
        "memory_bytes": 25_200_000_000,
        "gpus": [{"name": "NVIDIA H100", "compute_capability": [9, 0], "memory_bytes": 80 * 2**30}],
        "tensorflow": "2.21.0",
    },
    "model": {"name": "lenet", "parameters": 61706},
    "batch_size": 64,
    "epochs": 3,
    "steps_per_epoch": 100,
}
SUMMARY = {
    "kind": "summary",
    "steps": 300,
    "seconds": 12.2,
    "first_step_seconds": 2.2,
    "compile_seconds": 2.125,
    "step_ms": 16.15,
    "step_ms_p95": 18.75,
    "batches_per_sec": 60.1,
    "samples_per_sec": 3846.0,
    "input_wait_share": 0.0135,
    "input_bound": False,
    "mfu": 0.2145,
    "flops_per_step": 1.2e9,
    "peak_flops_per_second": 1.2e11,
    "peak_source": "measured float32 matmul",
    "speedup": 1.36,
    "speedup_low": 1.31,
    "speedup_high": 1.66,
    "comparisons": 8,
    "overhead_share": 0.0115,
    "peak_bytes": None,
    "host_peak_bytes": 812_345_344,
    "host_bytes": 700_000_000,
    "host_growth_bytes_per_step": 0.03 * 2**20,
    "host_growth_bytes_per_epoch": 3.0 * 2**20,
    "host_memory": "grows",
    "device_bytes": None,
    "device_growth_bytes_per_step": None,
    "device_growth_bytes_per_epoch": None,
    "device_memory": None,
    "retraces": 1,
    "retrace_causes": [
        {"cause": "shape", "argument": "x", "was": "(8, 4)", "now": "(4, 4)", "times": 1}
    ],
    "loss_scale": None,
    "traces": 2,
    "plan": "xla",
    "break_even_steps": 2210,
    "tuning_seconds": 13.25,
}


def interval(step, **changes):
    return {
        "kind": "interval",
        "epoch": step // 100,
        "step": step,
        "plan": "xla",
        "seconds": 3.5,
        "steps": 100,
        "input_bound": False,
        "throughput/batches_per_sec": 60.125,
        "throughput/samples_per_sec": 3848.0,
        "throughput/device/mfu": 0.21,
        "time/step_ms": 16.25,
        "time/step_ms_p95": 18.5,
        "time/input_wait_share": 0.012,
        "memory/host_peak_bytes": 700_000_000,
        "memory/host_bytes": 650_000_000 + 3 * 2**20 * step / 100,
        "accel/speedup": 1.36,
        "accel/speedup_low": 1.31,
        "accel/speedup_high": 1.66,
        "accel/traces": 2,
    } | changes


def comparison(step, ratio, plan="xla"):
    seconds = {"baseline_seconds": 0.016 * ratio, "plan_seconds": 0.016}
    return {"kind": "comparison", "step": step, "plan": plan} | seconds


def ops(plan, steps, **kinds):
    listed = [{"name": "MatMul<x>", "op_kind": "matmul", "count": 15, "seconds": kinds["matmul"]}]
    seconds = sum(kinds.values())
    return {
        "kind": "ops",
        "plan": plan,
        "steps": steps,
        "seconds": seconds,
        "ops": listed,
        "kinds": kinds,
    }


RECORDS = [
    RUN,
    {
        "kind": "trace",
        "step": 0,
        "seconds": 2.1,
        "traces": 1,
        "plan": "baseline",
        "shapes": ["(None, 32, 32, 3) float32", "(None,) int64"],
        "cause": "first",
    },
    {"kind": "tuning", "step": 3, "seconds": 13.25, "report": json.loads(TUNED.to_json())},
    *(comparison(50 + 10 * index, ratio) for index, ratio in enumerate(RATIOS)),
    *(interval(step) for step in (100, 200, 300)),
    ops("baseline", 5, matmul=0.05, elementwise=0.0225, optimizer=0.01),
    ops("xla", 5, matmul=0.04, elementwise=0.005, unheard_of=0.005),
    SUMMARY,
]


def saved(tmp_path, items):
    path = tmp_path / "profile.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


def run(*words):
    return call(COMMAND, *words)
