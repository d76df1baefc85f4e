"""A SavedModel whose signature has the names of the model's inputs and outputs."""

import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.inference.engines.engine import Runner
from tfaccel.inference.engines.forward import Forward, Signature, flat_forward
from tfaccel.inference.predict_function import PredictFunction, signature, tracked

FOLDER = "saved_model"
# TensorFlow Serving's default signature.
SIGNATURE = "serving_default"


def write_saved_model(
    model: keras.Model, function: PredictFunction | None, sample: Any, folder: pathlib.Path
) -> Signature:
    """Writes the predictions as a SavedModel, for TensorFlow Serving and other readers.

    Args:
        model: whose variables and tables go with it.
        function: that it computes; None for the model's own `predict_step`.
        sample: inputs.
        folder: the SavedModel is made in it, under `FOLDER`.

    Raises:
        ValueError: an output is no plain tensor.
    """
    step = (function or PredictFunction(Workload(model, training=False), Plan())).step
    forward = flat_forward(step, sample, signature(model, sample), model)
    write_forward(forward, tracked(model, function), folder)
    return Signature.of(forward, sample)


def write_forward(forward: Forward, layers: Iterable[Any], folder: pathlib.Path) -> None:
    """Writes a graph as the SavedModel that `SavedModel` reads.

    Args:
        forward: the graph.
        layers: that hold its variables and tables.
        folder: the SavedModel is made in it, under `FOLDER`.
    """
    archive = keras.export.ExportArchive()
    for layer in layers:
        archive.track(layer)
    archive.add_endpoint(SIGNATURE, forward.traced)
    # It has no gradients: those of functions that XLA compiles can't be traced alone.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(str(folder / FOLDER), options=options, verbose=False)


class SavedModel(Runner):
    """A SavedModel that TensorFlow runs.

    Args:
        folder: that it was written into.
        inputs, outputs: the names of its tensors.

    Raises:
        ValueError: it has other tensors.
    """

    def __init__(self, folder: pathlib.Path, inputs: Sequence[str], outputs: Sequence[str]):
        self._inputs, self._outputs = list(inputs), list(outputs)
        self._loaded = tf.saved_model.load(str(folder / FOLDER))  # it holds the weights
        self._serve = self._loaded.signatures[SIGNATURE]
        takes = sorted(self._serve.structured_input_signature[1])
        gives = sorted(self._serve.structured_outputs)
        if takes != sorted(inputs) or gives != sorted(outputs):
            raise ValueError(
                f"{FOLDER} must take {sorted(inputs)} and give {sorted(outputs)}. "
                f"Received: {takes} and {gives}"
            )

    def run(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        found = self._serve(**dict(zip(self._inputs, map(tf.constant, arrays), strict=True)))
        return [found[name] for name in self._outputs]

    def save(self, folder: pathlib.Path) -> None:
        raise NotImplementedError("what was loaded is copied as it is")
