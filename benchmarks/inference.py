"""What tfaccel.accelerate wins on predictions, in turns with Keras's own predict function.

    python benchmarks/inference.py --models mobilenet_v2 --batch_sizes 8,1
    python benchmarks/inference.py --engines openvino --models resnet50,mobilenet_v2
    python benchmarks/inference.py --int8 --models resnet50 --batch_sizes 8

Weights are random. With fresh statistics of BatchNormalization all outputs of a deep net are
alike, and a difference of 0 would prove nothing: they are taken from a batch, images are
not plain noise, and classifiers give logits. The table says how much outputs differ from
sample to sample.
"""

import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import _common
import _engines
import _random_nets
import keras
import models
import numpy as np
import tensorflow as tf
from absl import app, flags

import tfaccel
from tfaccel.inference.engines import OpenVINO
from tfaccel.inference.predict_function import own_function
from tfaccel.measure.numerics import relative_error
from tfaccel.measure.timing import median_interval, timed

_MODELS = flags.DEFINE_list("models", None, "names of the rows; all by default")
_BATCH_SIZES = flags.DEFINE_list("batch_sizes", ["8", "1"], "samples in a batch")
_SECONDS = flags.DEFINE_float(
    "tuning_seconds", 90.0, "what choosing a plan may take", lower_bound=0
)
_TURNS = flags.DEFINE_integer("turns", 15, "how often each side takes a turn", lower_bound=6)
_PLAN = flags.DEFINE_list("plan", None, "names of passes, in place of choosing")
_ENGINES = flags.DEFINE_list(
    "engines", [], "engines to measure in turns with predict_on_batch, and called by hand"
)
_INT8 = flags.DEFINE_bool(
    "int8", False, "OpenVINO in 8 bits, held to the classes that the float model gives"
)
_LABELLED = flags.DEFINE_integer("labelled", 128, "samples for --int8", lower_bound=8)
_MAX_DROP = flags.DEFINE_float("max_drop", 0.05, "of the classes, for --int8", lower_bound=0)
_SIZE = flags.DEFINE_integer("size", 224, "pixels of a side of ImageNet's models", lower_bound=32)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with the file that is there")

# Turns before the first that counts.
_WARM = 2
# Samples by which statistics are taken.
_CALIBRATION = 8


def _image() -> tuple[int, int, int]:
    return (_SIZE.value, _SIZE.value, 3)


class _Row:
    """A model and a batch size."""

    def __init__(self, benchmark: models.Benchmark, batch_size: int):
        self.benchmark, self.batch_size = benchmark, batch_size
        self.name = f"{benchmark.name}, batch {batch_size}"

    def model(self) -> keras.Model:
        shape = _image() if self.is_imagenet else self.benchmark.input_shape
        keras.utils.set_random_seed(0)
        model = self.benchmark.build(shape, 1000 if self.is_imagenet else self.benchmark.classes)
        model.layers[-1].activation = keras.activations.linear
        return _random_nets.calibrated(model, self.batch(seed=2, batch_size=_CALIBRATION))

    @property
    def is_imagenet(self) -> bool:
        return self.benchmark.name in ("resnet50", "mobilenet_v2", "efficientnet_b0")

    def batch(self, seed: int = 0, batch_size: int | None = None) -> np.ndarray:
        sample = _image() if self.is_imagenet else self.benchmark.input_shape
        shape = (batch_size or self.batch_size, *sample)
        if self.benchmark.vocabulary:
            random = np.random.default_rng(seed)
            return random.integers(0, self.benchmark.vocabulary, shape, dtype=np.int32)
        return _random_nets.images(shape, seed, self.benchmark.input_high)


def _in_turns(sides: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """The seconds of each side, by turns."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(_WARM + _TURNS.value):
        for name in sides if turn % 2 else reversed(sides):
            taken = timed(sides[name], time.perf_counter)
            if turn >= _WARM:
                seconds[name].append(taken)
    return seconds


def _measure(row: _Row) -> dict[str, Any]:
    model, x = row.model(), row.batch()
    if _ENGINES.value:
        other, given = row.batch(seed=1), (_ENGINES.value, _SECONDS.value, _TURNS.value)
        return {"batch_size": row.batch_size} | _engines.measure(model, x, other, *given)
    fast = tfaccel.accelerate(
        model, x, _PLAN.value or "auto", max_tuning_seconds=_SECONDS.value, cache_dir=False
    )
    own, data = own_function(model), [tf.constant(x)]
    other = row.batch(seed=1)
    sides: dict[str, Callable[[], Any]] = {
        "stock": lambda: own(data),
        "tfaccel": lambda: fast(x_tensor),
    }
    x_tensor = data[0]
    seconds = _in_turns(sides)
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["tfaccel"], strict=True)]
    expected = own([tf.constant(other)]).numpy()
    return {
        "batch_size": row.batch_size,
        "plan": str(fast.plan),
        "seconds": seconds,
        "median_seconds": {name: statistics.median(own) for name, own in seconds.items()},
        "speedup": median_interval(ratios),
        "drift": relative_error(expected, fast(tf.constant(other)).numpy()),
        "spread": _random_nets.spread(expected),
        "report": fast.report.to_dict(),
    }


def _measure_int8(row: _Row) -> dict[str, Any]:
    """Predictions in 8 bits, in turns with `predict_on_batch`; labels are the model's classes."""
    model, x = row.model(), row.batch()
    samples = row.batch(seed=3, batch_size=_LABELLED.value)
    labels = model.predict(samples, row.batch_size, verbose=0).argmax(-1)
    fast = tfaccel.accelerate(
        model,
        samples,
        [OpenVINO("int8", "throughput")],
        y=labels,
        allow=("int8",),
        max_drop=_MAX_DROP.value,
        batch_size=row.batch_size,
        max_tuning_seconds=_SECONDS.value,
        cache_dir=False,
    )
    trial = fast.report.trials[-1]
    seconds = _in_turns(
        {"stock": lambda: model.predict_on_batch(x), "tfaccel": lambda: fast(x).numpy()}
    )
    ratios = [a / b for a, b in zip(seconds["stock"], seconds["tfaccel"], strict=True)]
    return {
        "batch_size": row.batch_size,
        "plan": str(fast.plan),
        "reason": trial.reason,
        "seconds": seconds,
        "median_seconds": {name: statistics.median(own) for name, own in seconds.items()},
        "speedup": median_interval(ratios),
        "same_class": trial.metric,
        "drift": relative_error(model.predict_on_batch(x), fast(x).numpy()),
        "spread": _random_nets.spread(model.predict_on_batch(x)),
        "report": fast.report.to_dict(),
    }


def _interval(values: tuple[float, float, float]) -> str:
    return f"{values[0]:.2f}x [{values[1]:.2f}, {values[2]:.2f}]"


def _cell(make: Callable[[dict[str, Any]], str]) -> Callable[[dict[str, Any]], str]:
    return lambda row: "failed" if "error" in row else make(row)


COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column(
        "stock, ms", _cell(lambda r: _common.milliseconds(r["median_seconds"]["stock"]))
    ),
    _common.Column(
        "tfaccel, ms", _cell(lambda r: _common.milliseconds(r["median_seconds"]["tfaccel"]))
    ),
    _common.Column("speedup [95 %]", _cell(lambda row: _interval(row["speedup"]))),
    _common.Column("drift of outputs", _cell(lambda row: f"{row['drift']:.1e}")),
    _common.Column("spread of outputs", _cell(lambda row: f"{row['spread']:.1e}")),
    _common.Column("plan", _cell(lambda row: row["plan"]), is_number=False),
)


def _side(name: str) -> _common.Column:
    """The speedup of one side of `--engines`."""

    def cell(row: dict[str, Any]) -> str:
        return _interval(row["speedup"][name]) if name in row["speedup"] else ""

    return _common.Column(f"{name} [95 %]", _cell(cell))


ENGINE_COLUMNS = (
    COLUMNS[0],
    _common.Column(
        "predict_on_batch, ms",
        _cell(lambda r: _common.milliseconds(r["percentiles"][_engines.STOCK][0])),
    ),
    *map(_side, (_engines.PLANS, _engines.ENGINE, _engines.BARE)),
    _common.Column(
        "by hand over tfaccel",
        _cell(lambda row: _interval(row["overhead"]) if row["overhead"] else ""),
    ),
    _common.Column("drift of outputs", _cell(lambda r: f"{r['drift'][_engines.ENGINE]:.1e}")),
    COLUMNS[-1],
)


INT8_COLUMNS = (
    *COLUMNS[:4],
    _common.Column(
        "same class",
        _cell(lambda r: "-" if r["same_class"] is None else f"{r['same_class']:.1%}"),
    ),
    *COLUMNS[4:],
    _common.Column("refused because", lambda row: row.get("reason", ""), is_number=False),
)


def _rows() -> list[_Row]:
    sizes = [int(size) for size in _BATCH_SIZES.value]
    return [_Row(model, size) for model in models.chosen(_MODELS.value) for size in sizes]


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = "Predictions: Keras's predict function and tfaccel.accelerate in turns, float32"
    name = "inference-with-plan" if _PLAN.value else "inference"
    folder = pathlib.Path(_OUTPUT.value)
    columns, measure = COLUMNS, _measure
    if _INT8.value:
        title = "Predictions in 8 bits by OpenVINO, in turns with predict_on_batch"
        name, columns, measure = "inference-int8", INT8_COLUMNS, _measure_int8
    elif _ENGINES.value:
        title = "Predictions in turns with predict_on_batch: tfaccel, and engines by hand"
        name, columns = "inference-engines", ENGINE_COLUMNS
    results = _common.Results(name, title, columns, folder, _RESUME.value)
    _common.measure_each(results, _rows(), measure)


if __name__ == "__main__":
    app.run(main)
