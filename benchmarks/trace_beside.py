"""What the trace of a plan costs: standing still, and in a thread beside steps of a training.

For each model, in one process: the seconds of a trace while nothing runs, by how much a trace in a
thread delays the steps that run meanwhile, and the seconds of the first call after a trace, in
which TensorFlow readies the graph and XLA compiles. tfaccel traces standing still
(docs/design/lab-notes.md says why).

    python benchmarks/trace_beside.py --models mobilenet_v2,transformer
    python benchmarks/trace_beside.py --models mobilenet_v2 --threads 1
    python benchmarks/trace_beside.py --models mobilenet_v2,resnet50 --loops --plan fused_norm
"""

import pathlib
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import _common
import models
import tensorflow as tf
from absl import app, flags

from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan, make_pass
from tfaccel.core.workload import Workload
from tfaccel.passes import FusedNorm
from tfaccel.steps.compiled_step import BuiltStep, build_step
from tfaccel.steps.snapshot import build_all

_MODELS = flags.DEFINE_list("models", ["mobilenet_v2", "transformer"], "names of models.py")
_PLAN = flags.DEFINE_list("plan", ["fused_norm", "fused_optimizer"], "names of passes")
_LOOPS = flags.DEFINE_bool("loops", False, "compile loops for all normalizations")
_TURNS = flags.DEFINE_integer("turns", 3, "traces of each kind", lower_bound=1)
_THREADS = flags.DEFINE_integer(
    "threads", 0, "that a step may keep busy; 0 for as many as there are cores", lower_bound=0
)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with a results file")

_USUAL_STEPS = 8


def measure(benchmark: models.Benchmark) -> _common.Row:
    """A row of results."""
    model, data = benchmark.model(0), benchmark.dataset(0)
    iterator = iter(data)
    build_all(model, data.element_spec)
    model.make_train_function()
    step = model.train_function
    first, second = _seconds(lambda: step(iterator)), _seconds(lambda: step(iterator))
    usual = statistics.median(_seconds(lambda: step(iterator)) for _ in range(_USUAL_STEPS))
    workload = Workload(model, (next(iterator),), data.element_spec, step_seconds=usual)
    found: dict[str, list[float]] = {"standing": [], "lost": [], "call": []}
    for _ in range(_TURNS.value):
        built = _built(workload)
        found["standing"].append(_seconds(lambda built=built: _trace(built, iterator)))
        found["call"].append(_seconds(lambda built=built: built(iterator)))
        found["lost"].append(_lost(_built(workload), step, iterator, usual))
    return {
        "plan": str(_plan()),
        "threads": _THREADS.value,
        "own_seconds": max(first, second),
        "step_seconds": usual,
        **{f"{name}_seconds": statistics.median(each) for name, each in found.items()},
        "turns": found,
    }


def _plan() -> Plan:
    loops = FusedNorm(loops=_LOOPS.value)
    return Plan(tuple(loops if name == loops.name else make_pass(name) for name in _PLAN.value))


def _built(workload: Workload) -> BuiltStep:
    return build_step(workload, _plan(), holds=True)


def _trace(built: BuiltStep, iterator: Any) -> None:
    keras_private.traced_graph(built.function, iterator)


def _lost(built: BuiltStep, step: Any, iterator: Any, usual: float) -> float:
    """By how many seconds a trace in a thread delays the steps that run meanwhile."""
    thread = threading.Thread(target=_trace, args=(built, iterator))
    begun, calls = time.perf_counter(), 0
    thread.start()
    while thread.is_alive():
        step(iterator)
        calls += 1
    thread.join()
    return time.perf_counter() - begun - calls * usual


def _seconds(work: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _column(title: str, key: str) -> _common.Column:
    return _common.Column(title, lambda row: f"{row.get(key, 0.0):.2f}")


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("plan", lambda row: row.get("plan", row.get("error")), is_number=False),
    _common.Column("step, ms", lambda row: _common.milliseconds(row.get("step_seconds", 0.0))),
    _column("own first step, s", "own_seconds"),
    _column("trace standing still, s", "standing_seconds"),
    _column("lost beside steps, s", "lost_seconds"),
    _column("first call, s", "call_seconds"),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    if _THREADS.value:
        tf.config.threading.set_intra_op_parallelism_threads(_THREADS.value)
    kind = f"-{_THREADS.value}-thread{'s' * (_THREADS.value > 1)}" if _THREADS.value else ""
    results = _common.Results(
        f"trace-beside{kind}{'-loops' * _LOOPS.value}",
        "What the trace of a plan costs a training",
        COLUMNS,
        pathlib.Path(_OUTPUT.value),
        _RESUME.value,
    )
    _common.measure_each(results, models.chosen(_MODELS.value), measure)


if __name__ == "__main__":
    app.run(main)
