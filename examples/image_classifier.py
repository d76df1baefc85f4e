"""Trains an image classifier with tfaccel, and shows what that changed.

Without arguments it trains a small network on scikit-learn's digits twice, by stock
Keras and with `tfaccel.AccelCallback`, and compares the two. That takes a minute or
two:

    pip install 'tfaccel[examples]'
    python examples/image_classifier.py

On your own images (an .npz file with x_train, y_train, x_test, y_test):

    python examples/image_classifier.py --data_file images.npz --model resnet --epochs 20

With measurements of every step, and a page of plots made of them:

    python examples/image_classifier.py --profile_dir run && tfaccel report run
"""

import pathlib
import sys

import _datasets
import _example
import _networks
import _training
import keras
from absl import app, flags
from rich.console import Console

_MODEL = flags.DEFINE_enum("model", "cnn", ["cnn", "resnet"], "the network")
_DEPTH = flags.DEFINE_integer("depth", 8, "layers of the ResNet: 8, 14, 20, 26, ...")
_DATASET = flags.DEFINE_enum(
    "dataset", "digits", sorted(_datasets.SOURCES), "digits needs no download, the others do"
)
_DATA_FILE = flags.DEFINE_string(
    "data_file", None, "an .npz file with x_train, y_train, x_test, y_test, in place of --dataset"
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "the side that images are resized to. By default 24 for the digits, whose 8x8 pixels are too "
    "little work to show anything, and their own size for the rest",
    lower_bound=_datasets.MIN_IMAGE_SIZE,
)

flags.adopt_module_key_flags(_example)

_DEMONSTRATION = _training.Demonstration(seconds=20.0, fewest=10, most=200)

flags.register_validator(
    _DEPTH, lambda depth: depth >= 8 and depth % 6 == 2, "must be 6n + 2: 8, 14, 20, 26, ..."
)
flags.register_validator(
    _DATA_FILE, lambda path: path is None or pathlib.Path(path).is_file(), "there is no such file"
)


def build_model(images: _datasets.Images, seed: int) -> keras.Model:
    """The network that the flags ask for, compiled; one seed gives one model."""
    keras.utils.set_random_seed(seed)
    if _MODEL.value == "cnn":
        return _example.compiled(_networks.cnn(images.image_shape, images.classes))
    network = _networks.resnet(images.image_shape, images.classes, _DEPTH.value)
    return _example.compiled(network)


def is_demo() -> bool:
    """Whether this is the demonstration: a training of seconds on the digits."""
    return _DATASET.value == "digits" and _DATA_FILE.value is None


def load_images() -> _datasets.Images:
    """The data that the flags ask for.

    Raises:
        _datasets.DatasetError: it can't be had or used.
    """
    seed = _example.SEED.value
    size = 24 if _IMAGE_SIZE.value is None and is_demo() else _IMAGE_SIZE.value
    if _DATA_FILE.value is None:
        return _datasets.prepare(_DATASET.value, _datasets.SOURCES[_DATASET.value](), size, seed)
    path = pathlib.Path(_DATA_FILE.value)
    return _datasets.prepare(path.stem, _datasets.read_file(path), size, seed)


def load_task() -> _training.Task:
    """What the flags ask for.

    Raises:
        _datasets.DatasetError: the data can't be had or used.
    """
    images, batch_size = load_images(), _example.BATCH_SIZE.value

    # Keras shuffles arrays by the seed that `build_model` sets.
    def data(seed: int, samples: int | None) -> _training.Data:
        train = tuple(array[:samples] for array in images.train)
        validation = tuple(array[:samples] for array in images.validation)
        fit = {"x": train[0], "y": train[1], "batch_size": batch_size}
        test = {"x": images.test[0], "y": images.test[1]}
        return _training.Data({**fit, "validation_data": validation}, test)

    return _training.Task(
        name=images.name,
        title=str(images),
        model_name=f"resnet{_DEPTH.value}" if _MODEL.value == "resnet" else _MODEL.value,
        build=lambda seed: build_model(images, seed),
        data=data,
        train_samples=len(images.train[0]),
        test_samples=len(images.test[0]),
        batch_size=batch_size,
        unit="images",
        demonstration=_DEMONSTRATION if is_demo() else None,
    )


def main(argv: list[str]) -> None:
    """Trains as the flags say and prints what came of it."""
    _example.refuse_words(argv)
    if _DATA_FILE.value is not None and flags.FLAGS["dataset"].present:
        sys.exit("--dataset and --data_file exclude each other: give one of them.")
    try:
        task = load_task()
    except (_datasets.DatasetError, OSError) as error:
        sys.exit(f"{error}")
    _example.run(task, Console(), _example.make_profiler())


if __name__ == "__main__":
    app.run(main)
