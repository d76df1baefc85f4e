"""A SavedModel of predictions under a plan."""

import os
from typing import Any

import keras
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.inference.predict_function import PredictFunction
from tfaccel.inference.sample import spec_of

ENDPOINT = "serve"


def save(
    model: keras.Model,
    function: PredictFunction | None,
    sample: Any,
    path: str | os.PathLike[str],
) -> None:
    """Writes a SavedModel whose `serve` takes batches of any size.

    Args:
        model: whose variables and tables go with it.
        function: what it computes; None for the model's own `predict_step`.
        sample: inputs. A size that the model declares as open is open, others are the sample's.
        path: a folder.

    Source: https://keras.io/api/models/model_saving_apis/export/
    """
    step = (function or PredictFunction(Workload(model, training=False), Plan())).step

    def serve(x: Any) -> Any:
        return step((x,))

    archive = keras.export.ExportArchive()
    for layer in _tracked(model, function):
        archive.track(layer)
    archive.add_endpoint(ENDPOINT, serve, input_signature=[_signature(model, sample)])
    # Nobody trains it, and gradients of what XLA compiled can't be traced by themselves.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(os.fspath(path), options=options, verbose=False)


def _tracked(model: keras.Model, function: PredictFunction | None) -> list[Any]:
    """What holds the variables and tables that the graph reads."""
    if function is None or not function.is_frozen:
        return [model]
    # Constants are in the graph. Lookup tables are in layers without weights.
    return [x for x in function.layers if x.built and not x.variables and x is not model]


def _signature(model: keras.Model, sample: Any) -> Any:
    """Floating-point numbers and sizes as declared, where they are; the rest as in the sample."""
    spec = spec_of(sample)
    try:
        declared = list(model.inputs)
    except (AttributeError, ValueError):  # no graph of layers
        return spec
    leaves = tf.nest.flatten(spec)
    if len(leaves) != len(declared):
        return spec
    return tf.nest.pack_sequence_as(
        spec, [_opened(leaf, tensor) for leaf, tensor in zip(leaves, declared, strict=True)]
    )


def _opened(spec: Any, declared: Any) -> Any:
    """The spec with every size open that the model declares as open."""
    if not isinstance(spec, tf.TensorSpec) or spec.shape.rank != len(declared.shape):
        return spec
    pairs = zip(spec.shape, declared.shape, strict=True)
    sizes = [None if open_size is None else size for size, open_size in pairs]
    return tf.TensorSpec(sizes, declared.dtype if spec.dtype.is_floating else spec.dtype)
