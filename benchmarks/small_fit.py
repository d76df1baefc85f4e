"""What the callback costs where there is nothing to win: a `fit` of a second.

Trains a small model for three epochs with and without the callback, in turns,
each time a fresh model, and reports the median difference.

    python benchmarks/small_fit.py --runs 15
"""

import dataclasses
import gc
import pathlib
import tempfile
import time
from typing import Any

import _common
import keras
import numpy as np
from absl import app, flags

import tfaccel
from tfaccel.measure.timing import median_interval

_RUNS = flags.DEFINE_integer("runs", 11, "pairs of runs", lower_bound=7)
_EPOCHS = flags.DEFINE_integer("epochs", 3, "epochs of a run", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows", 6000, "training samples", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "samples in a batch", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")

_INPUTS, _HIDDEN, _CLASSES = 784, 128, 10
_SEED = 0

COLUMNS = (
    _common.Column("pair", lambda row: str(row["pair"])),
    _common.Column("stock, s", lambda row: f"{row['stock_seconds']:.3f}"),
    _common.Column("with the callback, s", lambda row: f"{row['seconds']:.3f}"),
    _common.Column("difference, s", lambda row: f"{row['overhead_seconds']:+.3f}"),
    _common.Column("difference, %", lambda row: f"{row['overhead_percent']:+.1f}"),
    _common.Column("difference, CPU s", lambda row: f"{row['overhead_cpu_seconds']:+.3f}"),
    _common.Column("same losses", lambda row: "yes" if row["same_losses"] else "no", False),
    _common.Column("plan", lambda row: row["plan"], is_number=False),
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
    random = np.random.default_rng(_SEED)
    inputs = random.random((_ROWS.value, _INPUTS), dtype=np.float32)
    return inputs, random.integers(0, _CLASSES, _ROWS.value, dtype=np.int32)


@dataclasses.dataclass(frozen=True)
class Fit:
    """One training: its time by the clock, its time on all cores, and its losses."""

    seconds: float
    cpu_seconds: float
    losses: list[float]


def fit(
    data: tuple[np.ndarray, np.ndarray], accelerator: tfaccel.AccelCallback | None = None
) -> Fit:
    """Trains a fresh model."""
    keras.backend.clear_session()
    gc.collect()
    model = _model()
    begin, cpu_begin = time.perf_counter(), time.process_time()
    history = model.fit(
        *data,
        batch_size=_BATCH_SIZE.value,
        epochs=_EPOCHS.value,
        verbose=0,
        callbacks=[accelerator] if accelerator else None,
    )
    seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    return Fit(seconds, cpu_seconds, history.history["loss"])


def pair(number: int, data: tuple[np.ndarray, np.ndarray]) -> dict[str, Any]:
    """One training of each kind, as a row; the order alternates."""
    with tempfile.TemporaryDirectory() as folder:
        # A fresh folder each time: a plan found before would spare what is measured.
        accelerator = tfaccel.AccelCallback(cache_dir=folder, verbose=0)
        if number % 2:
            accelerated, stock = fit(data, accelerator), fit(data)
        else:
            stock, accelerated = fit(data), fit(data, accelerator)
    return {
        "pair": number,
        "stock_seconds": stock.seconds,
        "seconds": accelerated.seconds,
        "overhead_seconds": accelerated.seconds - stock.seconds,
        "overhead_percent": 100 * (accelerated.seconds / stock.seconds - 1),
        # Other work on the machine disturbs this less than the clock's time.
        "overhead_cpu_seconds": accelerated.cpu_seconds - stock.cpu_seconds,
        "same_losses": accelerated.losses == stock.losses,
        "plan": str(accelerator.plan),
    }


def summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The median overhead with its interval, by the clock and in CPU time."""
    numbers = {
        unit: dict(
            zip(
                ("median", "low", "high"),
                median_interval([row[unit] for row in rows]),
                strict=True,
            )
        )
        for unit in ("overhead_seconds", "overhead_percent", "overhead_cpu_seconds")
    }
    seconds, percent, cpu_seconds = numbers.values()
    sentence = (
        f"The callback costs {1e3 * seconds['median']:+.0f} ms "
        f"[{1e3 * seconds['low']:+.0f}, {1e3 * seconds['high']:+.0f}], that is "
        f"{percent['median']:+.1f} % [{percent['low']:+.1f}, {percent['high']:+.1f}] "
        f"(medians of {len(rows)} pairs, with 95 % intervals), and "
        f"{1e3 * cpu_seconds['median']:+.0f} ms of CPU time "
        f"[{1e3 * cpu_seconds['low']:+.0f}, {1e3 * cpu_seconds['high']:+.0f}]."
    )
    return numbers, (sentence,)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = (
        f"fit of {_EPOCHS.value} epochs, {_ROWS.value} rows in batches of {_BATCH_SIZE.value}, "
        f"MLP {_INPUTS}-{_HIDDEN}-{_CLASSES}"
    )
    results = _common.Results("small-fit", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    data = _data()
    pair(0, data)  # What a process does once belongs to neither side.
    for number in range(1, _RUNS.value + 1):
        results.add(pair(number, data), summarize)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
