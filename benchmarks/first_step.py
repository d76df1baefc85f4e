"""How long a first step takes, tracing included, with the callback and without.

Keras makes the variables of optimizer and metrics in the trace of the first step, and
TensorFlow traces such a function once more. The callback makes them before. Each run is a
fit of one step on a fresh model; the two kinds take turns.

    python benchmarks/first_step.py --models mobilenet_v2,cnn
"""

import gc
import pathlib
import time

import _common
import keras
import models
from absl import app, flags

import tfaccel
from tfaccel.measure.timing import median_interval

_MODELS = flags.DEFINE_list("models", None, "names of models.py; all of them by default")
_PAIRS = flags.DEFINE_integer("pairs", 7, "pairs of runs for each model", lower_bound=6)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with the file that is there")


def fit(benchmark: models.Benchmark, *callbacks: keras.callbacks.Callback) -> tuple[float, float]:
    """Seconds of a fit of one step on a fresh model, and its loss."""
    keras.backend.clear_session()
    gc.collect()
    model, data = benchmark.model(), benchmark.dataset()
    begin = time.perf_counter()
    history = model.fit(data, steps_per_epoch=1, verbose=0, callbacks=[*callbacks])
    return time.perf_counter() - begin, history.history["loss"][0]


def pairs(benchmark: models.Benchmark) -> _common.Row:
    """All runs of a model, as a row."""
    stock, fast, same = [], [], True
    for number in range(_PAIRS.value):
        accel = tfaccel.AccelCallback(cache_dir=False, verbose=0)
        sides = [(stock, ()), (fast, (accel,))]
        losses = set()
        for seconds, callbacks in sides if number % 2 else reversed(sides):
            taken, loss = fit(benchmark, *callbacks)
            seconds.append(taken)
            losses.add(loss)
        same = same and len(losses) == 1
    ratio = median_interval([s / f for s, f in zip(stock, fast, strict=True)])
    return {
        "model": benchmark.name,
        "stock_seconds": median_interval(stock)[0],
        "seconds": median_interval(fast)[0],
        "speedup": list(ratio),
        "same_losses": same,
    }


def _speedup(row: _common.Row) -> str:
    median, low, high = row["speedup"]
    return f"{median:.2f}x [{low:.2f}, {high:.2f}]"


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("stock, s", lambda row: f"{row['stock_seconds']:.2f}"),
    _common.Column("with the callback, s", lambda row: f"{row['seconds']:.2f}"),
    _common.Column("speedup [95 %]", _speedup),
    _common.Column("same losses", lambda row: "yes" if row["same_losses"] else "no", False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = "The first step, stock Keras and with the callback"
    folder = pathlib.Path(_OUTPUT.value)
    results = _common.Results("first-step", title, COLUMNS, folder, _RESUME.value)
    console = _common.console()
    done = {row["model"] for row in results.rows}
    fit(models.chosen(["mlp"])[0])  # what a process does once belongs to neither side
    for benchmark in models.chosen(_MODELS.value):
        if benchmark.name not in done:
            console.print(f"{benchmark.name} ...")
            results.add(pairs(benchmark))
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
