"""Trains a small transformer on text with tfaccel, and shows what that changed.

Which library is a piece of Python from: Python's own, NumPy, Keras or TensorFlow? The texts are the
sources that are installed here, so nothing is downloaded. The network reads bytes, and is tested on
files that it was not trained on. It is trained twice, by stock Keras and with tfaccel, which takes
about a minute:

    pip install 'tfaccel[cpu]'
    python examples/text_classifier.py
"""

import importlib.util
import pathlib
import sys
import sysconfig

import _example
import _networks
import _training
import keras
import numpy as np
from absl import app, flags
from rich.console import Console

_LENGTH = flags.DEFINE_integer("length", 128, "bytes in a text", lower_bound=8)
_TEXTS = flags.DEFINE_integer("texts", 600, "texts of each library to train on", lower_bound=8)
flags.adopt_module_key_flags(_example)
flags.set_default(_example.BATCH_SIZE, 32)

_MOST_FILES = 300  # of a library
_LIBRARIES = ("Python", "numpy", "keras", "tensorflow")
_DEMONSTRATION = _training.Demonstration(seconds=25.0, fewest=3, most=40)


def sources(library: str) -> list[pathlib.Path]:
    """The files of a library that is installed, without its tests, in one order everywhere."""
    if library == "Python":
        return sorted(pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"))
    found = importlib.util.find_spec(library)
    if found is None or not found.origin:
        sys.exit(f"The example learns from the sources of {library}, which is not installed.")
    home = pathlib.Path(found.origin).parent
    files = home.rglob("*.py")
    return sorted(path for path in files if "test" not in path.relative_to(home).as_posix())


def texts(files: list[pathlib.Path], count: int, rng: np.random.Generator) -> np.ndarray:
    """So many pieces of the files, as bytes: int32 `(count, length)`."""
    whole = np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)
    starts = rng.integers(0, len(whole) - _LENGTH.value, count)
    return whole[starts[:, None] + np.arange(_LENGTH.value)].astype("int32")


def load_texts(seed: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Texts and labels to train on, to validate on and to test on, each from files of its own."""
    rng = np.random.default_rng(seed)
    parts: dict[str, list[np.ndarray]] = {"train": [], "validation": [], "test": []}
    for library in _LIBRARIES:
        files = [path for path in sources(library) if 500 < path.stat().st_size < 200_000]
        rng.shuffle(files)
        files = files[:_MOST_FILES]
        half = len(files) // 2
        few = max(8, _TEXTS.value // 4)
        parts["train"].append(texts(files[:half], _TEXTS.value, rng))
        parts["validation"].append(texts(files[half : -half // 2], few, rng))
        parts["test"].append(texts(files[-half // 2 :], few, rng))
    labels = {name: np.repeat(range(len(_LIBRARIES)), len(part[0])) for name, part in parts.items()}
    return {name: (np.concatenate(part), labels[name]) for name, part in parts.items()}


def build_model(seed: int) -> keras.Model:
    """The transformer, compiled; one seed gives one model."""
    keras.utils.set_random_seed(seed)
    return _example.compiled(_networks.text_transformer(_LENGTH.value, len(_LIBRARIES)))


def make_task() -> _training.Task:
    """The training that the flags ask for."""
    found, batch_size = load_texts(_example.SEED.value), _example.BATCH_SIZE.value
    (x, y), test = found["train"], found["test"]
    order = np.random.default_rng(_example.SEED.value).permutation(len(x))

    def data(seed: int, samples: int | None) -> _training.Data:
        rows = order[:samples]
        fit = {"x": x[rows], "y": y[rows], "batch_size": batch_size}
        fit["validation_data"] = tuple(part[:samples] for part in found["validation"])
        return _training.Data(fit, {"x": test[0], "y": test[1]})

    return _training.Task(
        name="texts",
        title=f"{len(x)} pieces of {_LENGTH.value} bytes from {', '.join(_LIBRARIES)}",
        model_name="transformer",
        build=build_model,
        data=data,
        train_samples=len(x),
        test_samples=len(test[0]),
        batch_size=batch_size,
        unit="texts",
        demonstration=_DEMONSTRATION,
    )


def main(argv: list[str]) -> None:
    """Trains as the flags say and prints what came of it."""
    _example.refuse_words(argv)
    _example.run(make_task(), Console(), _example.make_profiler())


if __name__ == "__main__":
    app.run(main)
