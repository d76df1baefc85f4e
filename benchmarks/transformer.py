"""The transformer's training step: stock Keras, plans, and PyTorch where it is installed.

    python benchmarks/transformer.py

All sides are in one process and take turns, step by step, so that each meets the same
machine. `--parts` times layers by themselves instead: forward and all gradients.
"""

import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping

import _common
import keras
import models
import tensorflow as tf
from absl import app, flags

from tfaccel.core.plan import Pass, Plan, make_pass
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import median_interval

# Threads of PyTorch's that wait must not slow TensorFlow's turn down.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
try:
    import _torch_transformer
except ImportError:
    _torch_transformer = None  # type: ignore[assignment]

_PLANS = flags.DEFINE_list(
    "plans",
    [
        "fused_norm+fused_optimizer",
        "fused_attention",
        "fused_norm+fused_optimizer+fused_attention+fused_activation",
        "fused_norm+fused_optimizer+fused_attention+fused_activation+kernels",
    ],
    "the plans, their passes joined by a plus",
)
_TURNS = flags.DEFINE_integer("turns", 10, "how often each side takes a turn", lower_bound=6)
_PARTS = flags.DEFINE_bool("parts", False, "layers by themselves, and not the step")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder of the results")

Step = Callable[[], object]
STOCK = "stock Keras"
# Turns that are not timed: tracing, compiling, filling caches.
_WARM_TURNS = 2
# Batch, length, width, heads.
_PART_SIZES = ((32, 128, 256, 8), (4, 1024, 256, 8))


def keras_step(benchmark: models.Benchmark, plan: Plan) -> Step:
    """A fresh model's train function, traced under a plan, on its data."""
    model, data = benchmark.model(), benchmark.dataset()
    iterator = iter(data)
    workload = Workload(model, (next(iterator),), data.element_spec)
    context = StepContext(workload)
    plan.prepare(context, time.perf_counter)

    def traced() -> object:
        with plan.applied(context):  # read while the first call traces
            return model.train_function(iterator)

    model.make_train_function(force=True)
    traced()
    return lambda: {k: float(v) for k, v in model.train_function(iterator).items()}


def sides(benchmark: models.Benchmark) -> dict[str, Step]:
    """Whatever trains the model, by name."""
    plans = [Plan(tuple(make_pass(name) for name in names.split("+"))) for names in _PLANS.value]
    found = {STOCK: keras_step(benchmark, Plan())}
    found |= {str(plan): keras_step(benchmark, plan) for plan in plans}
    if _torch_transformer is not None:
        threads = os.cpu_count() or 1
        for name, compiled in (("PyTorch, eager", False), ("PyTorch, torch.compile", True)):
            found[name] = _torch_transformer.step(benchmark, compiled, threads)
    return found


def parts() -> dict[str, dict[str, Step]]:
    """Layers of the transformer, each by Keras and under the pass that serves it."""
    found = {}
    for batch, length, width, heads in _PART_SIZES:
        shape = (batch, length, width)
        attention = keras.layers.MultiHeadAttention(heads, width // heads)
        wide = keras.layers.Dense(4 * width, activation="gelu")
        norm = keras.layers.LayerNormalization()
        served: tuple[tuple[keras.layers.Layer, str, Callable[[tf.Tensor], tf.Tensor]], ...] = (
            (attention, "fused_attention", lambda x, a=attention: a(x, x)),
            (wide, "fused_activation", wide),
            (norm, "fused_norm", norm),
        )
        for layer, name, call in served:
            title = f"{type(layer).__name__} on {'x'.join(map(str, shape))}"
            x = tf.random.stateless_normal(shape, (1, 2))
            call(x)
            found[title] = {
                STOCK: layer_step(layer, call, x, None),
                name: layer_step(layer, call, x, make_pass(name)),
            }
    return found


def layer_step(
    layer: keras.layers.Layer,
    call: Callable[[tf.Tensor], tf.Tensor],
    x: tf.Tensor,
    item: Pass | None,
) -> Step:
    """A layer's forward pass and the gradients of its input and weights."""
    weights = [weight.value for weight in layer.trainable_weights]
    model = keras.Model()
    model.part = layer

    @tf.function(input_signature=[tf.TensorSpec([None, *x.shape[1:]])], autograph=False)
    def run(x: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = call(x)
        # A gradient of ones would have the softmax's vanish.
        return [y, *tape.gradient(y, [x, *weights], tf.cos(y))]

    with Plan(() if item is None else (item,)).applied(StepContext(Workload(model))):
        run.get_concrete_function()
    return lambda: [float(tf.reduce_sum(z[..., :1])) for z in run(x)]


def taken_in_turns(steps: Mapping[str, Step]) -> dict[str, list[float]]:
    """Seconds of each side's turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(_WARM_TURNS + _TURNS.value):
        for name, step in steps.items():
            begun = time.perf_counter()
            step()
            if turn >= _WARM_TURNS:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def rows(what: str, seconds: Mapping[str, list[float]]) -> list[_common.Row]:
    """A row for each side."""
    stock = seconds[STOCK]
    found = []
    for name, own in seconds.items():
        gain = median_interval([a / b for a, b in zip(stock, own, strict=True)])
        found.append(
            {
                "what": what,
                "side": name,
                "step_seconds": statistics.median(own),
                "least_seconds": min(own),
                "speedup": gain,
                "turns_seconds": own,
            }
        )
    return found


def _speedup(row: _common.Row) -> str:
    middle, low, high = row["speedup"]
    return f"{middle:.2f}x [{low:.2f}, {high:.2f}]"


COLUMNS = (
    _common.Column("what", lambda row: row["what"], is_number=False),
    _common.Column("by", lambda row: row["side"], is_number=False),
    _common.Column("ms, median", lambda row: _common.milliseconds(row["step_seconds"])),
    _common.Column("ms, least", lambda row: _common.milliseconds(row["least_seconds"])),
    _common.Column("speed, stock = 1 [95 %]", _speedup),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    (benchmark,) = models.chosen(["transformer"])
    name, title = "transformer", "A transformer's training step, all sides in turns"
    if _PARTS.value:
        name, title = "transformer-parts", "Layers of a transformer, forward and gradients"
    results = _common.Results(name, title, COLUMNS, pathlib.Path(_OUTPUT.value))
    work = parts() if _PARTS.value else {"step, batch 32": sides(benchmark)}
    for what, steps in work.items():
        for row in rows(what, taken_in_turns(steps)):
            results.add(row)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
