"""Loading saved predictions, without the Keras model."""

import os
import pathlib
import shutil
from typing import Any

import keras
import tensorflow as tf

from tfaccel.inference.accelerated_model import AcceleratedModel
from tfaccel.inference.engines import ServedFunction, WordsRunner, engine_of
from tfaccel.inference.engines.engine import Runner
from tfaccel.inference.engines.engine_function import Served, inputs_of
from tfaccel.inference.engines.forward import Signature
from tfaccel.inference.saving.manifest import WORDS, Manifest
from tfaccel.inference.saving.saved_model import SavedModel


def load(folder: str | os.PathLike[str]) -> AcceleratedModel:
    """Loads what `AcceleratedModel.save` wrote.

    Only data is read: no Python code from the folder is run. A SavedModel is a TensorFlow
    program all the same, so load none that you would not run
    (https://github.com/tensorflow/tensorflow/blob/master/SECURITY.md).

    Args:
        folder: where it was saved.

    Returns:
        The model. As there is no Keras model behind it, `refresh` and `export` raise an error,
        and so does a prediction that fails.

    Raises:
        ValueError: the folder holds no saved model, or a damaged one; the message says what.
        ModuleNotFoundError: the engine is not installed here; the message says how it is.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> x = np.ones((8, 4), "float32")
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     tfaccel.accelerate(model, x, "baseline", verbose=0).save(folder)
    ...     tfaccel.load(folder).predict(x, verbose=0).shape
    (8, 1)
    """
    place = pathlib.Path(folder)
    found = Manifest.read(place)
    runner = _runner(place, found)
    signature = Signature(found.inputs, found.outputs, found.y, found.sizes)
    return _Loaded(place, found, Served(runner, signature))


def _runner(folder: pathlib.Path, found: Manifest) -> Runner:
    engine = engine_of(found.plan)
    inputs, outputs = ([spec.name for spec in specs] for specs in (found.inputs, found.outputs))
    missing = None if engine is None else engine.missing()
    if missing is not None:
        raise ModuleNotFoundError(f"{folder} needs an engine: {missing}")
    try:
        if engine is None:
            return SavedModel(folder, inputs, outputs)
        if found.between is None:
            return engine.load(folder, [*inputs, *outputs], found.sizes)
        words = SavedModel(folder / WORDS, inputs, found.between.names)
        names = [str(spec.name) for spec in found.between.inputs]
        rest = engine.load(folder, [*names, *outputs], found.between.sizes)
        return WordsRunner(words.run, rest)
    except Exception as error:  # a damaged file may fail in any way
        raise ValueError(f"{folder} can't be loaded: {type(error).__name__}: {error}") from error


class _LoadedFunction(ServedFunction):
    """A predict function of what was loaded."""

    def __init__(self, found: Manifest, served: Served):
        super().__init__(found.plan, found.inputs)
        self._served = served

    def served(self) -> Served:
        return self._served

    def or_told(self, data: Any) -> Any:
        """As a call, but a batch of another kind raises a ValueError that says so."""
        if not self.accepts(data):
            received = keras.tree.map_structure(_kind, [inputs_of(batch) for batch in data])
            kinds = [f"{spec.name}: {spec.dtype.name}{spec.shape}" for spec in self.specs]
            raise ValueError(f"inputs must be {', '.join(kinds)}. Received: {received}")
        return self(data)


def _kind(leaf: Any) -> str:
    return f"{leaf.dtype.name}{leaf.shape}" if isinstance(leaf, tf.Tensor) else type(leaf).__name__


class _Stub(keras.Model):
    """Stands where Keras's `predict` expects a model."""

    def __init__(self, name: str, function: _LoadedFunction):
        super().__init__(name=name)
        self._predicted = function.or_told

    def call(self, inputs: Any) -> Any:
        return self._predicted([(inputs,)])


class _Loaded(AcceleratedModel):
    """An accelerated model without the Keras model that it came from."""

    def __init__(self, folder: pathlib.Path, found: Manifest, served: Served):
        function = _LoadedFunction(found, served)
        model = _Stub(found.model, function)
        super().__init__(model, None, found.report, function.or_told, function)
        self._folder = folder

    def export(self, path: str | os.PathLike[str]) -> None:
        raise ValueError(_no_model("export"))

    def refresh(self) -> None:
        raise ValueError(_no_model("refresh"))

    def save(self, folder: str | os.PathLike[str]) -> None:
        shutil.copytree(self._folder, folder, dirs_exist_ok=True)


def _no_model(name: str) -> str:
    return f"`{name}` needs the Keras model, and this one was loaded; accelerate the model again"
