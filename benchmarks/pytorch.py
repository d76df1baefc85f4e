"""Training steps by stock Keras, by the plan that tfaccel chose, and by PyTorch, in turns.

    python benchmarks/pytorch.py --models mlp,embedding

The plans are those of this machine's results of training.py. PyTorch runs in float32 and in
bfloat16 (autocast), eagerly and by `torch.compile`, with channels last and fused Adam. It is not
among the packages that tfaccel needs: without it the benchmark ends.
"""

import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import _common
import keras
import models
from absl import app, flags

from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import median_interval

# Threads of PyTorch's that wait must not slow TensorFlow's turn down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

_MODELS = flags.DEFINE_list("models", None, "names of models.py; all that PyTorch has by default")
_TURNS = flags.DEFINE_integer("turns", 10, "how often each side takes a turn", lower_bound=6)
_SECONDS = flags.DEFINE_float("turn_seconds", 0.5, "how long stock Keras's turn is, about")
_COMPILED = flags.DEFINE_bool("compiled", True, "whether torch.compile takes part")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder of the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with a results file; failed models run again")

Step = Callable[[], object]
STOCK, OURS = "stock Keras", "tfaccel"
_WARM_STEPS = 3  # tracing, compiling, filling caches
_MOST_STEPS = 200


def chosen_plan(name: str) -> Plan:
    """The plan that training.py found for a model on this machine."""
    slug = _common.machine_slug(_common.machine())
    path = _common.RESULTS / f"training-{slug}.json"
    if not path.exists():
        raise FileNotFoundError(f"there is no {path.name}: run benchmarks/training.py first")
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    row = next((row for row in rows if row["model"] == name and "error" not in row), None)
    if row is None:
        raise LookupError(f"{path.name} has no {name}: run benchmarks/training.py --resume first")
    return Report.from_json(json.dumps(row["tuning"])).plan


def keras_step(benchmark: models.Benchmark, plan: Plan) -> Step:
    """A fresh model's train function, traced under a plan, on its data."""
    model, data = benchmark.model(), benchmark.dataset()
    iterator = iter(data)
    context = StepContext(Workload(model, (next(iterator),), data.element_spec))
    # A call makes one step here, as PyTorch's does.
    plan = Plan(tuple(item for item in plan.passes if item.name != "step_batching"))
    plan.prepare(context, time.perf_counter)
    model.make_train_function(force=True)
    with plan.applied(context):  # read while the first call traces
        model.train_function(iterator)
    return lambda: {k: float(v) for k, v in model.train_function(iterator).items()}


def torch_steps(benchmark: models.Benchmark) -> dict[str, Step]:
    """PyTorch's sides, by name."""
    import _torch_models

    threads = os.cpu_count() or 1
    return {
        f"PyTorch {dtype}{', compiled' if compiled else ''}": _torch_models.step(
            benchmark, dtype, compiled, threads
        )
        for dtype in ("float32", "bfloat16")
        for compiled in ((False, True) if _COMPILED.value else (False,))
    }


def taken_in_turns(steps: Mapping[str, Step]) -> dict[str, list[float]]:
    """Seconds a step of each side's turns."""
    for step in steps.values():
        for _ in range(_WARM_STEPS):
            step()
    begun = time.perf_counter()
    steps[STOCK]()
    once = max(time.perf_counter() - begun, 1e-6)
    count = min(max(round(_SECONDS.value / once), 1), _MOST_STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(_TURNS.value):
        for name, step in steps.items():
            begun = time.perf_counter()
            for _ in range(count):
                step()
            seconds[name].append((time.perf_counter() - begun) / count)
    return seconds


def measure(benchmark: models.Benchmark) -> dict[str, Any]:
    """All sides of one model."""
    plan = chosen_plan(benchmark.name)
    steps = {STOCK: keras_step(benchmark, Plan()), OURS: keras_step(benchmark, plan)}
    seconds = taken_in_turns(steps | torch_steps(benchmark))
    keras.backend.clear_session()
    medians = {name: statistics.median(own) for name, own in seconds.items()}
    best = min((name for name in seconds if name not in steps), key=lambda name: medians[name])

    def ahead(other: str) -> list[float]:
        return list(
            median_interval([a / b for a, b in zip(seconds[other], seconds[OURS], strict=True)])
        )

    return {
        "plan": str(plan),
        "step_seconds": medians,
        "best": best,
        "ahead_of_stock": ahead(STOCK),
        "ahead_of_best": ahead(best),
        "turns_seconds": seconds,
    }


def _cell(make: Callable[[_common.Row], str]) -> Callable[[_common.Row], str]:
    return lambda row: "" if "error" in row else make(row)


def _ratio(values: list[float]) -> str:
    return "{:.2f}x [{:.2f}, {:.2f}]".format(*values)


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    *(
        _common.Column(
            f"{side}, ms",
            _cell(lambda row, side=side: _common.milliseconds(row["step_seconds"][side])),
        )
        for side in (STOCK, OURS)
    ),
    _common.Column(
        "PyTorch's best, ms",
        _cell(lambda row: _common.milliseconds(row["step_seconds"][row["best"]])),
    ),
    _common.Column("which", _cell(lambda row: row["best"]), is_number=False),
    _common.Column("tfaccel over stock [95 %]", _cell(lambda row: _ratio(row["ahead_of_stock"]))),
    _common.Column("over PyTorch [95 %]", _cell(lambda row: _ratio(row["ahead_of_best"]))),
    _common.Column("plan", lambda row: row.get("error") or row["plan"], is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    import _torch_models

    names = _MODELS.value or list(_torch_models.BUILDERS)
    results = _common.Results(
        "pytorch",
        "A training step by stock Keras, tfaccel and PyTorch's best, in turns",
        COLUMNS,
        pathlib.Path(_OUTPUT.value),
        _RESUME.value,
    )
    _common.measure_each(results, models.chosen(names), measure)


if __name__ == "__main__":
    app.run(main)
