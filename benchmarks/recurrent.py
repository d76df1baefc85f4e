"""What the pass fused_rnn wins on recurrent layers and on a model made of them.

    python benchmarks/recurrent.py

Layers are timed forward and with all gradients, the model as a whole training step with
Adam; every side takes its turn in each round. Where PyTorch is installed its own layers and
the same model, eager and compiled, take turns too.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import _common
import keras
import models
import numpy as np
import tensorflow as tf
from absl import app, flags

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import median_interval, timed
from tfaccel.passes import FusedNorm, FusedOptimizer, FusedRNN
from tfaccel.steps.compiled_step import build_step

try:
    import _torch_recurrent
except ImportError:
    _torch_recurrent = None

_ROUNDS = flags.DEFINE_integer("rounds", 25, "in which every side takes one turn", lower_bound=1)
_WORK = flags.DEFINE_list("work", None, "names of the rows; all by default")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with the file that is there")

Step = Callable[[], object]
# The shape of conv_lstm's second layer.
_SHAPE, _UNITS = (64, 98, 128), 128
_LAYERS = {"LSTM": ("LSTM", False), "GRU": ("GRU", False), "Bidirectional LSTM": ("LSTM", True)}
_GATES = {"LSTM": 4, "GRU": 3}
_MODEL = "conv_lstm"
_PLAN = Plan((FusedNorm(), FusedOptimizer(), FusedRNN()))
_STOCK, _OURS = "stock", "tfaccel"
# Steps before the first that counts: tracing, compiling, and PyTorch's own warming up.
_WARM = 3


def _layer_step(name: str, plan: Plan) -> Step:
    """One Keras layer, forward and all gradients, traced under a plan."""
    keras.utils.set_random_seed(0)
    kind, bidirectional = _LAYERS[name]
    layer = getattr(keras.layers, kind)(_UNITS, return_sequences=True)
    layer = keras.layers.Bidirectional(layer) if bidirectional else layer
    model = keras.Sequential([keras.Input(_SHAPE[1:]), layer])
    x = tf.random.normal(_SHAPE)
    upstream = tf.random.normal(model.compute_output_shape(_SHAPE))
    weights = [weight.value for weight in layer.trainable_weights]

    # The batch size is not known while tracing, as in `fit`.
    @tf.function(input_signature=[tf.TensorSpec([None, *t.shape[1:]]) for t in (x, upstream)])
    def gradients(x: tf.Tensor, upstream: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = model(x, training=True)
        return tape.gradient(outputs, [x, *weights], upstream)

    with plan.applied(StepContext(Workload(model, (x,)))):
        traced = gradients.get_concrete_function()
    return functools.partial(traced, x, upstream)


def _training_step(plan: Plan) -> Step:
    """A training step of the model, under a plan."""
    (benchmark,) = models.chosen([_MODEL])
    model, iterator = benchmark.model(), iter(benchmark.dataset())
    workload = Workload(model, (next(iterator),), iterator.element_spec)
    return functools.partial(build_step(workload, plan), iterator)


def _sides(name: str) -> dict[str, Step]:
    """Everything that takes turns for a row."""
    theirs: dict[str, Step] = {}
    if name == _MODEL:
        make: Callable[[Plan], Step] = _training_step
        if _torch_recurrent is not None:
            (benchmark,) = models.chosen([_MODEL])
            shape = (benchmark.batch_size, *benchmark.input_shape)
            theirs = _torch_recurrent.training_steps(shape, benchmark.classes)
    else:
        make = functools.partial(_layer_step, name)
        if _torch_recurrent is not None:
            kind, bidirectional = _LAYERS[name]
            theirs = _torch_recurrent.layer_steps(kind, _SHAPE, _UNITS, bidirectional)
    ours = _PLAN if name == _MODEL else Plan((FusedRNN(),))
    return {_STOCK: make(Plan()), _OURS: make(ours), **theirs}


def _turns(sides: dict[str, Step]) -> dict[str, list[float]]:
    """Seconds of a step of every side, round by round; each round begins with another."""
    clock, names = time.perf_counter, list(sides)
    for step in sides.values():
        for _ in range(_WARM):
            timed(step, clock)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(_ROUNDS.value):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(timed(sides[name], clock))
    return seconds


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> tuple[float, float, float]:
    return median_interval([a / b for a, b in zip(slow, fast, strict=True)])


def _row(name: str) -> _common.Row:
    seconds = _turns(_sides(name))
    medians = {side: float(np.median(taken)) for side, taken in seconds.items()}
    theirs = [side for side in medians if side not in (_STOCK, _OURS)]
    best = min(theirs, key=lambda side: medians[side], default=None)
    return {
        "work": name,
        "rounds": _ROUNDS.value,
        "median_seconds": medians,
        "speedup": _ratio(seconds[_STOCK], seconds[_OURS]),
        "best_of_pytorch": best,
        "against_pytorch": _ratio(seconds[best], seconds[_OURS]) if best else None,
        "floor_seconds": _products(name) / _peak() if name in _LAYERS else None,
    }


def _products(name: str) -> float:
    """FLOPs of all matrix products of a layer: forward, and for two gradients."""
    kind, bidirectional = _LAYERS[name]
    batch, steps, features = _SHAPE
    one = 2.0 * batch * steps * (features + _UNITS) * _GATES[kind] * _UNITS
    return 3 * one * (2 if bidirectional else 1)


@functools.cache
def _peak() -> float:
    """FLOP/s of a large product."""
    size = 2048
    square = tf.random.normal([size, size])
    product = tf.function(lambda: tf.matmul(square, square))
    product()
    return 2.0 * size**3 / min(timed(product, time.perf_counter) for _ in range(8))


def _side(row: _common.Row, side: str | None) -> str:
    return _common.milliseconds(row["median_seconds"].get(side)) if side else "-"


def _interval(values: tuple[float, float, float] | None) -> str:
    return f"{values[0]:.2f}x [{values[1]:.2f}, {values[2]:.2f}]" if values else "-"


COLUMNS = (
    _common.Column("work", lambda row: row["work"], is_number=False),
    _common.Column("stock, ms", lambda row: _side(row, _STOCK)),
    _common.Column("tfaccel, ms", lambda row: _side(row, _OURS)),
    _common.Column("speedup [95 %]", lambda row: _interval(row["speedup"])),
    _common.Column("products alone, ms", lambda row: _common.milliseconds(row["floor_seconds"])),
    _common.Column("PyTorch, ms", lambda row: _side(row, row["best_of_pytorch"])),
    _common.Column("best of it", lambda row: row["best_of_pytorch"] or "-", is_number=False),
    _common.Column("against PyTorch [95 %]", lambda row: _interval(row["against_pytorch"])),
)


def _summary(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    shape = "x".join(map(str, _SHAPE))
    return {}, (
        f"Layers: {_UNITS} units, all outputs, inputs of {shape}, forward and all gradients, "
        f"under fused_rnn. {_MODEL}: a training step with Adam, under {_PLAN}. Products alone: "
        "their FLOPs at the rate of a product of two 2048x2048 matrices.",
    )


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = "Recurrent layers: stock Keras, tfaccel and PyTorch in turns, float32"
    folder = pathlib.Path(_OUTPUT.value)
    results = _common.Results("recurrent", title, COLUMNS, folder, _RESUME.value)
    console = _common.console()
    for name in _WORK.value or (*_LAYERS, _MODEL):
        console.print(f"{name} ...")
        results.add(_row(name), _summary)
        keras.backend.clear_session()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
