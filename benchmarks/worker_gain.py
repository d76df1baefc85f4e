"""Whether workers gain by AccelCallback what one process does.

The ResNet of examples/image_classifier.py on the digits, by one process with one core and by
workers with a core each. Either chooses a plan by a `fit` with AccelCallback, then takes turns
between stock Keras and that plan, in blocks of steps of two copies of the model.

    python benchmarks/worker_gain.py
"""

import pathlib
import statistics
import sys
import time
from typing import Any

import _cluster
import _common
import _datasets
import _networks
import keras
import tensorflow as tf
from absl import app, flags

import tfaccel
from tfaccel.measure.timing import median_interval

_WORKERS = flags.DEFINE_integer("workers", 2, "beside one process", lower_bound=2)
_STEPS = flags.DEFINE_integer("steps", 240, "of the fit that chooses", lower_bound=20)
_BLOCKS = flags.DEFINE_integer("blocks", 12, "of either side that are timed", lower_bound=3)
_BLOCK_STEPS = flags.DEFINE_integer("block_steps", 10, "steps of a block", lower_bound=2)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images of a worker's batch", lower_bound=1)
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 24, "the side of an image", lower_bound=8)
_PLAN = flags.DEFINE_list("plan", None, "passes in place of a choice")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_FOLDER = flags.DEFINE_string("folder", None, "where a worker writes what it found")

_DEPTH = 8
# Of issue 25: what workers are to gain of what one process does.
_LEAST_SHARE = 0.9
_QUIET = {"verbose": 0, "shuffle": False}

COLUMNS = (
    _common.Column("processes", lambda row: str(row["workers"])),
    _common.Column("plan", lambda row: row["plan"], is_number=False),
    _common.Column("stock step, ms", lambda row: _common.milliseconds(row["stock_seconds"])),
    _common.Column("under the plan, ms", lambda row: _common.milliseconds(row["plan_seconds"])),
    _common.Column("gain [95 %]", lambda row: "{:.2f}x [{:.2f}, {:.2f}]".format(*row["gain"])),
)


class _Seconds(keras.callbacks.Callback):
    """The seconds of each step but the first of a fit, which waits for the data."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: list[float] = []
        self._last: float | None = None

    def on_train_begin(self, logs: Any = None) -> None:
        self._last = None

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now = time.perf_counter()
        if self._last is not None:
            self.seconds.append(now - self._last)
        self._last = now


def _built(strategy: tfaccel.AccelStrategy, images: _datasets.Images) -> keras.Model:
    keras.utils.set_random_seed(0)
    with strategy.scope():
        model = _networks.resnet(images.image_shape, images.classes, _DEPTH)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def _block(model: keras.Model, data: Any, *callbacks: Any) -> float:
    """A step's seconds, on average over a block."""
    clock = _Seconds()
    steps = _BLOCK_STEPS.value + 1
    model.fit(data, steps_per_epoch=steps, callbacks=[*callbacks, clock], **_QUIET)
    return statistics.fmean(clock.seconds)


def measure_here(strategy: tfaccel.AccelStrategy) -> dict[str, Any]:
    """One worker's part."""
    images = _datasets.prepare("digits", _datasets.SOURCES["digits"](), _IMAGE_SIZE.value, _DEPTH)
    batch_size = strategy.global_batch_size(_BATCH_SIZE.value)
    data = tf.data.Dataset.from_tensor_slices(images.train).repeat().batch(batch_size, True)
    model, stock = _built(strategy, images), _built(strategy, images)
    plan: Any = _PLAN.value
    report = None
    if plan is None:
        accel = tfaccel.AccelCallback(cache_dir=False, verbose=0)
        model.fit(data, steps_per_epoch=_STEPS.value, callbacks=[accel], **_QUIET)
        plan, report = accel.plan, accel.report.to_dict()
    used = tfaccel.AccelCallback(plan, verbose=0)
    pairs = [(_block(stock, data), _block(model, data, used)) for _ in range(_BLOCKS.value + 1)][
        1:
    ]  # the first ones trace
    return {
        "workers": strategy.num_replicas_in_sync,
        "plan": str(used.plan),
        "stock_seconds": statistics.median(own for own, _ in pairs),
        "plan_seconds": statistics.median(faster for _, faster in pairs),
        "gain": list(median_interval([own / faster for own, faster in pairs])),
        "report": report,
    }


def summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What workers gain of what one process does."""
    alone = next(row for row in rows if row["workers"] == 1)
    several = [row for row in rows if row["workers"] > 1]
    if not several:
        return {}, ()
    share = several[-1]["gain"][0] / alone["gain"][0]
    sentence = (
        f"{several[-1]['workers']} workers gain {share:.2f} of what one process gains "
        f"(at least {_LEAST_SHARE} is asked for)."
    )
    return {"share": share}, (sentence,)


def main(argv: list[str]) -> None:
    if _FOLDER.value is not None:
        # Before anything else uses TensorFlow.
        strategy = tfaccel.AccelStrategy(mixed_precision=False, data_format=False)
        _cluster.leave(_FOLDER.value, measure_here(strategy), strategy)
        return
    _common.no_arguments(argv)
    cores = _cluster.cores()
    if len(cores) < _WORKERS.value:
        sys.exit(f"{_WORKERS.value} workers need a core each, and there are {len(cores)}")
    title = f"What AccelCallback gains on ResNet{_DEPTH}, by workers with a core each"
    results = _common.Results("worker-gain", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    words = [__file__, *sys.argv[1:], "--folder"]
    for count in (1, _WORKERS.value):
        prefixes = [_cluster.on_core(core) for core in cores[:count]]
        results.add(_cluster.run_workers(words, prefixes)[0], summarize)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
