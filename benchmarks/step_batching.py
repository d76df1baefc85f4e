"""What `step_batching` wins in a whole `fit` of a small model, and how many steps a call pay.

Trains a 784-128-10 MLP from NumPy arrays with stock Keras and with tfaccel, in turns,
each time a fresh model, and compares whole fits (tracing and tuning included), epochs
once nothing is traced or tuned any more, and the losses.

    python benchmarks/step_batching.py --epochs 10 --plan step_batching,fused_optimizer
    python benchmarks/step_batching.py --epochs 30 --plan auto --resume
    python benchmarks/step_batching.py --curve
"""

import gc
import itertools
import pathlib
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import _common
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfaccel
from tfaccel.autotune.offline import offline_trials
from tfaccel.measure.timing import median_interval
from tfaccel.passes import StepBatching

_RUNS = flags.DEFINE_integer("runs", 5, "pairs of runs", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 10, "epochs of a run", lower_bound=4)
_ROWS = flags.DEFINE_integer("rows", 60_000, "training samples", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "samples in a batch", lower_bound=1)
_PLAN = flags.DEFINE_string("plan", "auto", "auto, or names of passes with commas between")
_CURVE = flags.DEFINE_bool("curve", False, "time calls of 2 to 128 steps instead of fits")
_RESUME = flags.DEFINE_bool("resume", False, "add to the results that are there")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")

_INPUTS, _HIDDEN, _CLASSES = 784, 128, 10
_SEED = 0
# Epochs in which something may still be traced or tuned: half of a fit.
_STEADY_SHARE = 0.5

COLUMNS = (
    _common.Column("epochs", lambda row: str(row["epochs"])),
    _common.Column("plan asked for", lambda row: row["asked"], is_number=False),
    _common.Column("plan", lambda row: row["plan"], is_number=False),
    _common.Column("stock, s", lambda row: f"{row['stock_seconds']:.2f}"),
    _common.Column("tfaccel, s", lambda row: f"{row['seconds']:.2f}"),
    _common.Column("whole fit", lambda row: f"{row['speedup']:.2f}x"),
    _common.Column("stock, s an epoch", lambda row: f"{row['stock_epoch_seconds']:.3f}"),
    _common.Column("tfaccel, s an epoch", lambda row: f"{row['epoch_seconds']:.3f}"),
    _common.Column("steady epochs", lambda row: f"{row['epoch_speedup']:.2f}x"),
    _common.Column("losses off by", lambda row: f"{row['losses_off_by']:.1e}"),
)
CURVE_COLUMNS = (
    _common.Column("steps a call", lambda row: str(row["steps"])),
    _common.Column("a step, ms", lambda row: _common.milliseconds(row["step_seconds"])),
    _common.Column(
        "speedup [95 %]",
        lambda row: f"{row['speedup'][0]:.2f}x [{row['speedup'][1]:.2f}, {row['speedup'][2]:.2f}]",
    ),
)


def _model() -> keras.Model:
    keras.utils.set_random_seed(_SEED)
    model = keras.Sequential(
        [
            keras.Input((_INPUTS,)),
            keras.layers.Dense(_HIDDEN, activation="relu"),
            keras.layers.Dense(_CLASSES, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _data() -> tuple[np.ndarray, np.ndarray]:
    """Classes that a linear layer could tell apart, so that the loss falls."""
    random = np.random.default_rng(_SEED)
    inputs = random.random((_ROWS.value, _INPUTS), dtype=np.float32)
    scores = inputs @ random.normal(size=(_INPUTS, _CLASSES)).astype(np.float32)
    return inputs, (scores - scores.mean(axis=0)).argmax(axis=1).astype(np.int32)


class _Stopwatch(keras.callbacks.Callback):
    """The seconds of each epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begin = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seconds.append(time.perf_counter() - self._begin)


def _fit(
    data: tuple[np.ndarray, np.ndarray], accelerator: tfaccel.AccelCallback | None = None
) -> tuple[float, float, np.ndarray]:
    """Trains a fresh model: the seconds of it all, of a steady epoch, and the losses."""
    keras.backend.clear_session()
    gc.collect()
    model, stopwatch = _model(), _Stopwatch()
    begin = time.perf_counter()
    history = model.fit(
        *data,
        batch_size=_BATCH_SIZE.value,
        epochs=_EPOCHS.value,
        verbose=0,
        callbacks=[stopwatch, *([accelerator] if accelerator else [])],
    )
    seconds = time.perf_counter() - begin
    steady = stopwatch.seconds[int(_STEADY_SHARE * _EPOCHS.value) :]
    return seconds, float(np.median(steady)), np.array(history.history["loss"])


def _pair(number: int, data: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """One training of each kind, as a row; the order alternates."""
    asked = _PLAN.value if _PLAN.value == "auto" else _PLAN.value.split(",")
    with tempfile.TemporaryDirectory() as folder:
        # A fresh folder each time: a plan found before would spare what is measured.
        accelerator = tfaccel.AccelCallback(asked, cache_dir=folder, verbose=0)
        if number % 2:
            fast, stock = _fit(data, accelerator), _fit(data)
        else:
            stock, fast = _fit(data), _fit(data, accelerator)
    report = accelerator.report
    return {
        "epochs": _EPOCHS.value,
        "asked": _PLAN.value,
        "plan": str(accelerator.plan),
        "tuning_seconds": report.tuning_seconds if report else 0.0,
        "stock_seconds": stock[0],
        "seconds": fast[0],
        "speedup": stock[0] / fast[0],
        "stock_epoch_seconds": stock[1],
        "epoch_seconds": fast[1],
        "epoch_speedup": stock[1] / fast[1],
        "losses_off_by": float(np.max(np.abs(fast[2] / stock[2] - 1))),
    }


def summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Median speedups with their intervals, for each number of epochs and plan."""
    numbers, sentences = {}, []
    for key, group in itertools.groupby(rows, lambda row: (row["epochs"], row["asked"])):
        members = list(group)
        whole = median_interval([row["speedup"] for row in members])
        steady = median_interval([row["epoch_speedup"] for row in members])
        tuning = float(np.median([row["tuning_seconds"] for row in members]))
        numbers[f"{key[0]} epochs, {key[1]}"] = {"whole": whole, "steady": steady}
        sentences.append(
            f"{key[0]} epochs, {key[1]}: whole fits {_interval(whole)}, steady epochs "
            f"{_interval(steady)}; tuning took {tuning:.1f} s "
            f"(medians of {len(members)} pairs, with 95 % intervals, or the range below 6 pairs)."
        )
    return numbers, tuple(sentences)


def _interval(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f}x [{values[1]:.2f}, {values[2]:.2f}]"


def _curve(data: tuple[np.ndarray, np.ndarray]) -> Iterator[dict[str, Any]]:
    """A step's time with more and more steps in a call, beside the model's own."""
    inputs, labels = (array[: 8 * _BATCH_SIZE.value] for array in data)
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).batch(_BATCH_SIZE.value)
    with offline_trials(_model(), dataset) as bench:
        for steps in (2, 4, 8, 16, 32, 64, 128):
            trial = bench.try_plan(tfaccel.Plan((StepBatching(steps),)))
            gain = trial.speedup or tfaccel.Speedup()
            yield {
                "steps": steps,
                "step_seconds": trial.step_seconds,
                "speedup": (gain.median, gain.low, gain.high),
                "verdict": trial.outcome.value,
            }


def _results() -> _common.Results:
    output = pathlib.Path(_OUTPUT.value)
    model = f"MLP {_INPUTS}-{_HIDDEN}-{_CLASSES} in batches of {_BATCH_SIZE.value}"
    if _CURVE.value:
        title = f"steps in one call, {model}, beside a call each"
        return _common.Results("step-batching-curve", title, CURVE_COLUMNS, output)
    title = f"fit(numpy) of {_ROWS.value} rows, {model}, stock Keras and tfaccel in turns"
    return _common.Results("step-batching", title, COLUMNS, output, _RESUME.value)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    results = _results()
    data = _data()
    if _CURVE.value:
        for row in _curve(data):
            results.add(row)
    else:
        _model().fit(*data, batch_size=_BATCH_SIZE.value, verbose=0)  # what a process does once
        for number in range(_RUNS.value):
            results.add(_pair(number, data), summarize)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
