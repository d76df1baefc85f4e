"""What a user waits for: a whole `fit`, from its call to its last epoch's end.

Each fit runs in a process of its own, with an empty cache of plans, `AccelCallback()` as it
comes. Stock Keras and tfaccel take turns; then once more with the cache that the first fit
filled. Tracing, compiling, trials and races are all part of the time. What comes between the last
epoch and `fit`'s return is told apart: stock Keras waits there for tf.data's autotuning thread, at
times for most of a minute, which tfaccel leaves to a thread.

    python benchmarks/whole_fit.py --models cnn,lstm --seconds 90
    python benchmarks/whole_fit.py --models cnn --seconds 600 --epochs 10 --stock_epochs 3
"""

import json
import math
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import _common
import keras
import models
from absl import app, flags

import tfaccel

_MODELS = flags.DEFINE_list("models", None, "names of models.py; all of them by default")
_SECONDS = flags.DEFINE_float("seconds", 90.0, "about what stock Keras takes", lower_bound=1.0)
_TURNS = flags.DEFINE_integer("turns", 1, "fits of each kind", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 4, "epochs of a fit", lower_bound=3)
_STOCK_EPOCHS = flags.DEFINE_integer(
    "stock_epochs",
    None,
    "run stock Keras for only so many epochs and reckon the others as long as its late ones",
    lower_bound=3,
)
_FILLED = flags.DEFINE_bool("filled", True, "measure with a filled cache, too")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with a results file")
_SEED = flags.DEFINE_integer("seed", 0, "decides weights and data", lower_bound=0)
_CHILD = flags.DEFINE_string("child", None, "of the benchmark's own: what to run, as JSON")

# Steps by which the length of a fit is found out.
_PROBED_STEPS = 13
_KINDS = ("stock", "empty cache", "filled cache")


class _Epochs(keras.callbacks.Callback):
    """Notes what each epoch takes."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._begun = self.ended = 0.0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._begun = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.ended = time.perf_counter()
        self.seconds.append(self.ended - self._begun)


def fit(model: str, steps: int, epochs: int, cache: str | None, seed: int) -> dict[str, Any]:
    """One fit in this process.

    Args:
        model: its name.
        steps: of an epoch.
        epochs: how many.
        cache: the folder of plans; None for stock Keras.
        seed: decides weights and data.
    """
    benchmark = models.chosen([model])[0]
    net, data, watch = benchmark.model(seed), benchmark.dataset(seed), _Epochs()
    accel = None if cache is None else tfaccel.AccelCallback(cache_dir=cache)
    callbacks = [watch] if accel is None else [watch, accel]
    start = time.perf_counter()
    history = net.fit(data, steps_per_epoch=steps, epochs=epochs, callbacks=callbacks, verbose=2)
    seconds = time.perf_counter() - start
    found = {
        "seconds": watch.ended - start,
        "return_seconds": seconds,
        "epochs": watch.seconds,
        "loss": history.history["loss"][-1],
    }
    if accel is not None and accel.report is not None:
        found |= {
            "plan": str(accel.plan),
            "live": accel.report.speedup,
            "tuning_seconds": accel.report.tuning_seconds,
            "note": accel.report.note,
            "report": accel.report.to_dict(),
        }
    return found


def in_child(**arguments: Any) -> dict[str, Any]:
    """The same in a process of its own."""
    words = [sys.executable, __file__, f"--child={json.dumps(arguments)}"]
    # What is known of kernels is kept there, too.
    folder = arguments["cache"] or tempfile.gettempdir()
    env = os.environ | {"TFACCEL_CACHE_DIR": folder}
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=env)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        raise RuntimeError(f"a fit failed: {done.stderr.strip()[-500:]}")
    return json.loads(lines[-1])


def measure(benchmark: models.Benchmark) -> _common.Row:
    """A row of results."""
    own = {"model": benchmark.name, "seed": _SEED.value}
    probe = in_child(**own, steps=_PROBED_STEPS, epochs=2, cache=None)
    step = probe["epochs"][1] / _PROBED_STEPS
    first = probe["epochs"][0] - probe["epochs"][1]
    epochs = _EPOCHS.value
    steps = max(4, math.ceil((_SECONDS.value - first) / step / epochs))
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for _ in range(_TURNS.value):
        found["stock"].append(_stock(own, steps))
        with tempfile.TemporaryDirectory() as cache:
            for kind in _KINDS[1 : 3 if _FILLED.value else 2]:
                found[kind].append(in_child(**own, steps=steps, epochs=epochs, cache=cache))
    return {"steps": steps * epochs} | _summary(found)


def _stock(own: dict[str, Any], steps: int) -> dict[str, Any]:
    """A fit of stock Keras, in part where that was asked for, its seconds those of all epochs."""
    epochs = _EPOCHS.value
    run = min(epochs, _STOCK_EPOCHS.value or epochs)
    found = in_child(**own, steps=steps, epochs=run, cache=None)
    # Its first epoch traces and compiles.
    left = (epochs - run) * statistics.median(found["epochs"][1:])
    return found | {"seconds": found["seconds"] + left, "reckoned_seconds": left}


def _summary(found: dict[str, list[dict[str, Any]]]) -> _common.Row:
    def median(kind: str, key: str = "seconds") -> float | None:
        return statistics.median(one[key] for one in found[kind]) if found[kind] else None

    def late_epoch(kind: str) -> float:
        # From the third on all tuning is over. Epochs of stock differ by up to 10 % in one fit.
        return statistics.median(one for fit in found[kind] for one in fit["epochs"][2:])

    stock, empty = found["stock"], found["empty cache"]
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(stock, empty, strict=True)]
    filled = [
        a["seconds"] / b["seconds"] for a, b in zip(stock, found["filled cache"], strict=False)
    ]
    return {
        "stock_seconds": median("stock"),
        "reckoned_seconds": median("stock", "reckoned_seconds"),
        "seconds": median("empty cache"),
        "speedup": statistics.median(ratios),
        "speedups": ratios,
        "filled_speedup": statistics.median(filled) if filled else None,
        "steady_speedup": late_epoch("stock") / late_epoch("empty cache"),
        "live_speedup": median("empty cache", "live"),
        "tuning_seconds": median("empty cache", "tuning_seconds"),
        "plan": empty[0].get("plan"),
        "note": empty[0].get("note"),
        "fits": found,
    }


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}x"


def _stock_seconds(row: _common.Row) -> str:
    # Results of before have no such field.
    reckoned = row.get("reckoned_seconds") or 0.0
    seconds = f"{row.get('stock_seconds') or 0:.1f}"
    return f"{seconds} ({reckoned:.0f} reckoned)" if reckoned else seconds


def _summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    gains = [row["speedup"] for row in rows if "error" not in row]
    if not gains:
        return {}, ()
    mean = statistics.geometric_mean(gains)
    said = f"Geometric mean of whole fits with an empty cache: {mean:.2f}x over {len(gains)} models"
    return {"speedup": mean, "least": min(gains)}, (f"{said}; the least {min(gains):.2f}x.",)


_COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("steps", lambda row: str(row.get("steps", row.get("error")))),
    _common.Column("stock, s", _stock_seconds),
    _common.Column("tfaccel, s", lambda row: f"{row.get('seconds') or 0:.1f}"),
    _common.Column("whole fit", lambda row: _times(row.get("speedup"))),
    _common.Column("filled cache", lambda row: _times(row.get("filled_speedup"))),
    _common.Column("late epochs", lambda row: _times(row.get("steady_speedup"))),
    _common.Column("printed", lambda row: _times(row.get("live_speedup"))),
    _common.Column("tuning, s", lambda row: f"{row.get('tuning_seconds') or 0:.1f}"),
    _common.Column("plan", lambda row: str(row.get("plan")), is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    if _CHILD.value:
        print(json.dumps(fit(**json.loads(_CHILD.value))))
        return
    seconds = f"{_SECONDS.value:.0f}"
    results = _common.Results(
        f"whole-fit-{seconds}s",
        f"A whole fit that takes stock Keras about {seconds} s",
        _COLUMNS,
        pathlib.Path(_OUTPUT.value),
        _RESUME.value,
    )
    _common.measure_each(results, models.chosen(_MODELS.value), measure, _summarize)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
