"""A training loop of one's own against `fit`, each as it is and under one plan, in turns.

All four sides train a model of their own on the same batches in one process. A block of steps of
each side comes after one of the next; a block's first step is left out.

    python benchmarks/loops.py --models resnet50
"""

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import _common
import keras
import models
import tensorflow as tf
import training
from absl import app, flags

import tfaccel
from tfaccel.autotune.explicit_plan import served
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import median_interval

_STEPS = flags.DEFINE_integer("steps", 8, "steps of a block", lower_bound=3)
flags.adopt_module_key_flags(training)
flags.FLAGS.set_default("models", ["resnet50"])
flags.FLAGS.set_default("plan", ["fused_norm", "fused_optimizer", "mixed_precision", "kernels"])

Block = Callable[[], float]


def fitted(benchmark: models.Benchmark, plan: tfaccel.Plan | None) -> Block:
    """Blocks of `fit`."""
    model, data, clock = benchmark.model(0), benchmark.dataset(0), training.BlockClock()
    accel = [] if plan is None else [tfaccel.AccelCallback(plan, verbose=0)]

    def block() -> float:
        callbacks = [*accel, clock]
        model.fit(data, steps_per_epoch=_STEPS.value, callbacks=callbacks, verbose=0, shuffle=False)
        return clock.seconds[-1]

    return block


def looped(benchmark: models.Benchmark, plan: tfaccel.Plan | None) -> Block:
    """Blocks of a loop around the same step, written by hand."""
    model, batches = benchmark.model(0), iter(benchmark.dataset(0))
    compute_loss = keras.losses.get(model.loss)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(compute_loss(y, model(x, training=True)))
        weights = model.trainable_weights
        model.optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    made = step
    if plan is not None:
        made = tfaccel.accelerate_step(
            step, plan, model=model, optimizer=model.optimizer, verbose=0
        )

    def block() -> float:
        made(*next(batches))
        begin = time.perf_counter()
        for _ in range(_STEPS.value - 1):
            loss = made(*next(batches))
        float(loss)
        return (time.perf_counter() - begin) / (_STEPS.value - 1)

    return block


def measure(benchmark: models.Benchmark) -> _common.Row:
    """A row of results."""
    # What a chip can't serve is left out by both, and is not to be read in the table.
    plan = served(tfaccel.core.plan.as_plan(flags.FLAGS.plan), Workload(benchmark.model()))
    sides = {
        "fit": fitted(benchmark, None),
        "loop": looped(benchmark, None),
        "fit_plan": fitted(benchmark, plan),
        "loop_plan": looped(benchmark, plan),
    }
    for block in sides.values():
        for _ in range(2):  # traces, and kernels
            block()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(flags.FLAGS.blocks):
        for name, block in sides.items():
            seconds[name].append(block())
    return {"plan": str(plan), "blocks_seconds": seconds} | _summary(seconds)


def _summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    def ratio(a: str, b: str) -> list[float]:
        return list(median_interval([x / y for x, y in zip(seconds[a], seconds[b], strict=True)]))

    return {
        "step_seconds": {name: statistics.median(found) for name, found in seconds.items()},
        "fit_speedup": ratio("fit", "fit_plan"),
        "loop_speedup": ratio("loop", "loop_plan"),
        "loop_against_fit": ratio("loop_plan", "fit_plan"),
    }


def _step(name: str) -> Callable[[_common.Row], str]:
    return lambda row: _common.milliseconds(row.get("step_seconds", {}).get(name))


def _ratio(name: str) -> Callable[[_common.Row], str]:
    def cell(row: _common.Row) -> str:
        found = row.get(name)
        return "-" if not found else f"{found[0]:.2f}x [{found[1]:.2f}, {found[2]:.2f}]"

    return cell


_COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("fit, ms", _step("fit")),
    _common.Column("fit under the plan, ms", _step("fit_plan")),
    _common.Column("loop, ms", _step("loop")),
    _common.Column("loop under the plan, ms", _step("loop_plan")),
    _common.Column("speedup of fit [95 %]", _ratio("fit_speedup")),
    _common.Column("speedup of the loop", _ratio("loop_speedup")),
    _common.Column("loop's step over fit's", _ratio("loop_against_fit")),
    _common.Column("plan", lambda row: row.get("error") or row["plan"], is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    results = _common.Results(
        "loops",
        "A training loop of one's own and fit, in turns",
        _COLUMNS,
        pathlib.Path(flags.FLAGS.output),
        flags.FLAGS.resume,
    )
    _common.measure_each(results, models.chosen(flags.FLAGS.models), measure)


if __name__ == "__main__":
    app.run(main)
