"""Whether gradients in bfloat16 train as well as those in float32.

The ResNet of examples/image_classifier.py on an .npz file of images, by two workers, with and
without `compress_gradients="bfloat16"`, for some seeds.

    python benchmarks/compressed_accuracy.py --data_file cifar10.npz --epochs 5
"""

import pathlib
import statistics
import sys
from typing import Any

import _cluster
import _common
import _datasets
import _networks
import keras
from absl import app, flags

import tfaccel

_DATA_FILE = flags.DEFINE_string("data_file", None, "x_train, y_train, x_test, y_test")
_SAMPLES = flags.DEFINE_integer("samples", None, "to train on; all by default", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", 5, "of a training", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 3, "trainings of either kind", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images of a worker's batch", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_FOLDER = flags.DEFINE_string("folder", None, "where a worker writes what it found")

_DEPTH, _WORKERS = 8, 2
# In this order, as compression holds for all that a process traces from then on.
_KINDS = ("float32", "bfloat16")

COLUMNS = (
    _common.Column("gradients", lambda row: row["gradients"], is_number=False),
    _common.Column("seed", lambda row: str(row["seed"])),
    _common.Column("test accuracy", lambda row: f"{row['accuracy']:.4f}"),
    _common.Column("last loss", lambda row: f"{row['loss']:.4f}"),
)


def _trained(
    strategy: tfaccel.AccelStrategy, images: _datasets.Images, seed: int
) -> dict[str, float]:
    keras.utils.set_random_seed(seed)
    with strategy.scope():
        model = _networks.resnet(images.image_shape, images.classes, _DEPTH)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = (array[: _SAMPLES.value] for array in images.train)
    batch_size = strategy.global_batch_size(_BATCH_SIZE.value)
    history = model.fit(x, y, batch_size=batch_size, epochs=_EPOCHS.value, verbose=0)
    _, accuracy = model.evaluate(*images.test, batch_size=batch_size, verbose=0)
    return {"seed": seed, "accuracy": accuracy, "loss": history.history["loss"][-1]}


def measure_here(strategy: tfaccel.AccelStrategy) -> dict[str, Any]:
    """One worker's part."""
    path = pathlib.Path(_DATA_FILE.value)
    images = _datasets.prepare(path.stem, _datasets.read_file(path), None, 0)
    rows = []
    for kind in _KINDS:
        if kind == "bfloat16":
            tfaccel.AccelStrategy(strategy, compress_gradients=kind)
        for seed in range(_SEEDS.value):
            rows.append({"gradients": kind} | _trained(strategy, images, seed))
    return {"rows": rows}


def summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """How far the means are apart, in standard deviations."""
    plain, sent = ([row["accuracy"] for row in rows if row["gradients"] == kind] for kind in _KINDS)
    if len(sent) < 2:
        return {}, ()
    apart = statistics.fmean(sent) - statistics.fmean(plain)
    deviation = max(statistics.stdev(plain), statistics.stdev(sent))
    sentence = (
        f"With gradients in bfloat16 the accuracy is {apart:+.4f} on average; the standard "
        f"deviation over {len(plain)} seeds is {deviation:.4f}."
    )
    return {"difference": apart, "deviation": deviation}, (sentence,)


def main(argv: list[str]) -> None:
    if _FOLDER.value is not None:
        # Before anything else uses TensorFlow.
        strategy = tfaccel.AccelStrategy(mixed_precision=False, data_format=False)
        _cluster.leave(_FOLDER.value, measure_here(strategy), strategy)
        return
    _common.no_arguments(argv)
    if _DATA_FILE.value is None:
        sys.exit("--data_file must name an .npz file of images")
    title = f"ResNet{_DEPTH} by two workers, with gradients in float32 and in bfloat16"
    results = _common.Results("compressed-accuracy", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    cores = _cluster.cores()
    prefixes = [_cluster.on_core(cores[i % len(cores)]) for i in range(_WORKERS)]
    words = [__file__, *sys.argv[1:], "--folder"]
    for row in _cluster.run_workers(words, prefixes, most_seconds=3600.0)[0]["rows"]:
        results.add(row, summarize)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
