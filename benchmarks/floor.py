"""Where a training step's time goes, and how much of it no plan can save.

For each model: its step by stock Keras and under a plan, timed in turns; what its products
take at the machine's measured peak, and its tensors at the measured bandwidth; and which
kinds of op the time goes to, before and after.

    python benchmarks/floor.py --models mobilenet_v2 --plan fused_norm,fused_optimizer,kernels
"""

import pathlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import _common
import keras
import models
import tensorflow as tf
from absl import app, flags

import tfaccel
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.training_trials import TrainingTrials
from tfaccel.core.plan import make_pass
from tfaccel.core.workload import Workload
from tfaccel.profiling.flops.counting import model_flops_per_step
from tfaccel.profiling.peaks import peak_flops
from tfaccel.profiling.traces.op_trace import OpProfile, OpTrace, kinds_table

_MODELS = flags.DEFINE_list("models", None, "names of models.py; all of them by default")
_PLAN = flags.DEFINE_list(
    "plan", ["fused_norm", "fused_optimizer"], "passes of the plan; refused ones are left out"
)
_STEPS = flags.DEFINE_integer("steps", 5, "steps that are traced", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with a results file; failed models run again")

flags.register_validator(
    _MODELS,
    lambda names: not set(names or ()) - {model.name for model in models.MODELS},
    f"must be names from {', '.join(model.name for model in models.MODELS)}",
)

# How often the output of a layer with weights goes to memory or comes from it, at least:
# written and read forward, read backward, and its gradient written and read.
_PASSES_OF_OUTPUTS = 5
# A weight: read forward and backward, its gradient written and read, and the weight and
# Adam's two moments read and written.
_PASSES_OF_WEIGHTS = 10
# Larger than any cache.
_COPIED_BYTES = 2**28
_COPIES = 5
# Kinds that a cell of the table names.
_NAMED_KINDS = 5


def traffic_bytes(workload: Workload, batch_size: int) -> int:
    """The least that a step moves, were each elementwise chain one op with the product before."""
    layers = [
        layer
        for layer in workload.layers
        if layer.weights and not isinstance(layer, keras.Model) and hasattr(layer, "output")
    ]
    outputs = sum(_bytes(output, batch_size) for layer in layers for output in _outputs(layer))
    weights = sum(_bytes(weight) for weight in workload.model.trainable_variables)
    return _PASSES_OF_OUTPUTS * outputs + _PASSES_OF_WEIGHTS * weights


def _outputs(layer: keras.layers.Layer) -> list[Any]:
    try:
        return keras.tree.flatten(layer.output)
    except (AttributeError, ValueError):  # never called on symbols, such as a layer's own parts
        return []


def _bytes(tensor: Any, batch_size: int = 1) -> int:
    sizes = (batch_size if size is None else size for size in tensor.shape)
    return int(tf.TensorShape(sizes).num_elements() * tf.as_dtype(tensor.dtype).size)


def bandwidth() -> float:
    """Bytes a second at best: values that are there are added to others that are there."""
    values = tf.zeros((_COPIED_BYTES // 4,))
    sums = tf.Variable(values)
    seconds = []
    for _ in range(_COPIES):
        start = time.perf_counter()
        sums.assign_add(values, read_value=False)
        seconds.append(time.perf_counter() - start)
    # Two are read and one is written.
    return 3 * _COPIED_BYTES / min(seconds)


def _traced(step: Callable[[], Any]) -> OpProfile:
    with tempfile.TemporaryDirectory() as folder, OpTrace(folder) as trace:
        for _ in range(_STEPS.value):
            step()
    if trace.profile is None:
        raise RuntimeError("nothing was traced")
    return trace.profile


def measure(benchmark: models.Benchmark) -> dict[str, Any]:
    """Times and traces one model's step, as it is and under the plan."""
    model, dataset = benchmark.model(0), benchmark.dataset(0)
    with offline_trials(model, dataset) as bench:
        asked = [make_pass(name) for name in _PLAN.value]
        plan = tfaccel.Plan(tuple(item for item in asked if not item.unsupported(bench.workload)))
        trial = bench.try_plan(plan)
        if trial.speedup is None or trial.step_seconds is None:
            raise RuntimeError(f"the plan was not timed: {trial.reason}")
        profiles = _profiles(bench, plan)
        workload = bench.workload
        flops = model_flops_per_step(model, workload.batches[0]) or 0
        moved = traffic_bytes(workload, benchmark.batch_size)
        peak = peak_flops(workload.device, "float32")
    gain = trial.speedup
    _common.console().print(kinds_table(profiles[0], _STEPS.value, profiles[1], _STEPS.value))
    return {
        "plan": str(plan),
        "step_seconds": trial.step_seconds,
        "stock_step_seconds": trial.step_seconds * gain.median,
        "speedup": [gain.median, gain.low, gain.high],
        "verdict": f"{trial.outcome.value}; {trial.reason}".removesuffix("; "),
        "flops": flops,
        "flops_per_second": peak.flops_per_second if peak else None,
        "bytes": moved,
        "bytes_per_second": bandwidth(),
        "ops": [profile.to_record(name, _STEPS.value) for name, profile in _named(profiles, plan)],
        "kinds": [profile.kinds for profile in profiles],
    }


def _named(profiles: list[OpProfile], plan: tfaccel.Plan) -> list[tuple[str, OpProfile]]:
    return list(zip(("baseline", str(plan)), profiles, strict=True))


def _profiles(bench: TrainingTrials, plan: tfaccel.Plan) -> list[OpProfile]:
    """Of the own step, and of the plan's."""
    if plan.changes_step:
        step = bench.step_function(plan)
        batches = tf.data.Dataset.from_tensors(bench.workload.batches[0]).repeat()
        own, planned = bench.workload.model.train_function, step
        iterator = iter(batches)
        return [_traced(lambda f=f: f(iterator)) for f in (own, planned)]
    raise ValueError(f"`plan` must change what a step computes. Received: {plan}")


def _shares(kinds: dict[str, float]) -> str:
    total = sum(kinds.values())
    top = list(kinds.items())[:_NAMED_KINDS]
    return ", ".join(f"{kind} {seconds / total:.0%}" for kind, seconds in top)


def _floor(row: _common.Row, what: str) -> str:
    rate = row[f"{what}_per_second"]
    return _common.milliseconds(row[what] / rate) if rate else "-"


def _column(title: str, cell: Callable[[_common.Row], str], is_number: bool = True):
    """A column that stays empty where the model failed."""
    return _common.Column(title, lambda row: "" if "error" in row else cell(row), is_number)


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _column("stock, ms", lambda row: _common.milliseconds(row["stock_step_seconds"])),
    _column("plan, ms", lambda row: _common.milliseconds(row["step_seconds"])),
    _column("speedup [95 %]", lambda r: "{:.2f}x [{:.2f}, {:.2f}]".format(*r["speedup"])),
    _column("products at peak, ms", lambda row: _floor(row, "flops")),
    _column("tensors at bandwidth, ms", lambda row: _floor(row, "bytes")),
    _column("stock's time goes to", lambda row: _shares(row["kinds"][0]), is_number=False),
    _column("the plan's", lambda row: _shares(row["kinds"][1]), is_number=False),
    _common.Column("plan", lambda row: row.get("error") or row["plan"], is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = "Where a training step's time goes, and what products and tensors must take"
    folder = pathlib.Path(_OUTPUT.value)
    results = _common.Results("floor", title, COLUMNS, folder, _RESUME.value)
    _common.measure_each(results, models.chosen(_MODELS.value), measure)


if __name__ == "__main__":
    app.run(main)
