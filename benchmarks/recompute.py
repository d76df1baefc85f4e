"""What gradient checkpointing saves and what it costs.

Each side of each model trains in a process of its own, as the peak of a process is
what is measured: how far it grows, during a few steps, above what it was before the
first. Memory is taken from and given back to the system at once there (glibc's own
pool is turned off), so that what a step needs is what the system sees.

    python benchmarks/recompute.py --models deep_mlp,resnet50
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any

import _common
import keras
import models
from absl import app, flags

import tfaccel
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import timed
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.snapshot import build_optimizer
from tfaccel.system.memory import meter_for

_MODELS = flags.DEFINE_list("models", ["deep_mlp", "deep_cnn", "resnet50", "transformer"], "which")
_STEPS = flags.DEFINE_integer("steps", 5, "timed steps", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_SIDE = flags.DEFINE_string("side", "", "measure this side of the one model, and print JSON")

# Above this size memory comes from the system and goes back to it.
# https://man7.org/linux/man-pages/man3/mallopt.3.html
_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
_SIDES: dict[str, tuple[tfaccel.Pass, ...]] = {
    "stock": (),
    "recompute": (tfaccel.passes.Recompute(),),
}
_MIB = 2**20


def _deep_mlp(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    body = [keras.layers.Dense(256, activation="tanh") for _ in range(32)]
    return keras.Sequential([keras.Input(input_shape), *body, keras.layers.Dense(classes)])


def _deep_cnn(input_shape: tuple[int, ...], classes: int) -> keras.Model:
    x = inputs = keras.Input(input_shape)
    for _ in range(12):
        x = keras.layers.Conv2D(16, 3, padding="same", use_bias=False)(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(classes)(x))


DEEP = (
    models.Benchmark("deep_mlp", _deep_mlp, 4096, (256,)),
    models.Benchmark("deep_cnn", _deep_cnn, 32, (48, 48, 3)),
)
COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("batch", lambda row: str(row["batch_size"])),
    _common.Column("stock, MiB", lambda row: f"{row['stock']['peak_bytes'] / _MIB:.0f}"),
    _common.Column("recompute, MiB", lambda row: f"{row['recompute']['peak_bytes'] / _MIB:.0f}"),
    _common.Column("memory", lambda row: f"{row['memory']:.2f}"),
    _common.Column("stock, ms", lambda row: _common.milliseconds(row["stock"]["step_seconds"])),
    _common.Column(
        "recompute, ms", lambda row: _common.milliseconds(row["recompute"]["step_seconds"])
    ),
    _common.Column("time", lambda row: f"{row['time']:.2f}"),
)


def _benchmark(name: str) -> models.Benchmark:
    known = {benchmark.name: benchmark for benchmark in (*DEEP, *models.MODELS)}
    if name not in known:
        sys.exit(f"No model is called {name!r}. Known: {', '.join(known)}")
    return known[name]


def measured(benchmark: models.Benchmark, side: str) -> dict[str, Any]:
    """Peak and time of the steps of one side, in this process."""
    model = benchmark.model()
    build_optimizer(model)
    workload, iterator = Workload(model), iter(benchmark.dataset())
    step = build_step(workload, Plan(_SIDES[side]))
    meter = meter_for(workload.device)
    with meter.measured() as peak:
        seconds = [
            timed(lambda: step(iterator), time.perf_counter) for _ in range(_STEPS.value + 1)
        ]
    return {"peak_bytes": peak.bytes, "step_seconds": statistics.median(seconds[1:])}


def compared(benchmark: models.Benchmark) -> dict[str, Any]:
    """Both sides of a model, each in a process of its own, as a row."""
    row: dict[str, Any] = {"model": benchmark.name, "batch_size": benchmark.batch_size}
    for side in _SIDES:
        words = [sys.executable, __file__, f"--models={benchmark.name}", f"--side={side}"]
        words.append(f"--steps={_STEPS.value}")
        done = subprocess.run(
            words, env=os.environ | _ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True
        )
        row[side] = json.loads(done.stdout.splitlines()[-1])
    for name, key in (("memory", "peak_bytes"), ("time", "step_seconds")):
        row[name] = row["recompute"][key] / row["stock"][key]
    return row


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    chosen = [_benchmark(name) for name in _MODELS.value]
    if _SIDE.value:
        print(json.dumps(measured(chosen[0], _SIDE.value)))
        return
    title = "Memory of a step above that of the process, and its time, with recompute and without"
    results = _common.Results("recompute", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    for benchmark in chosen:
        results.add(compared(benchmark))
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
