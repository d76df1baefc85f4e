"""What a model's inputs are like."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from tfaccel.cli._command import UsageError
from tfaccel.cli.inputs.models import Chosen
from tfaccel.compat import keras_private
from tfaccel.data.rules import fits

# Inputs are uniform in [0, 1), or in [0, 255) for models that scale their inputs themselves.
_HIGH = 255.0
_SCALING = (keras.layers.Rescaling, keras.layers.Normalization)
# What an integer input stays below where no Embedding says more.
_SMALLEST_VOCABULARY = 2
_WORDS = 100


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """One input of a model."""

    name: str  # the input's name
    shape: tuple[int | None, ...]  # of one sample; None for a size that may vary
    dtype: str  # the input's dtype
    vocabulary: int | None = None  # where samples are indices, what they stay below

    @property
    def is_float(self) -> bool:
        """Whether the input takes numbers with fractions."""
        return "float" in self.dtype


def input_specs(model: keras.Model) -> tuple[InputSpec, ...]:
    """The model's inputs; empty for a model that does not declare them (a subclassed one)."""
    return tuple(
        InputSpec(
            tensor.name, tuple(tensor.shape[1:]), str(tensor.dtype), _vocabulary(model, tensor)
        )
        for tensor in getattr(model, "inputs", None) or ()
    )


def packed(model: keras.Model, arrays: Sequence[Any]) -> Any:
    """One array for each input in the structure that the model was made with."""
    if isinstance(model, keras.Sequential) or not getattr(model, "inputs", None):
        return arrays[0]
    return keras.tree.pack_sequence_as(model.input, list(arrays))


def random_inputs(chosen: Chosen, count: int, random: np.random.Generator) -> Any:
    """Samples of the right shapes and dtypes.

    Raises:
        UsageError: the model does not say how large its inputs are.
    """
    model = chosen.model
    layers = keras_private.flatten_layers(model)
    high = _HIGH if any(isinstance(layer, _SCALING) for layer in layers) else 1.0
    specs = _sized(chosen)
    return packed(model, [_samples(spec, count, random, high) for spec in specs])


def _vocabulary(model: keras.Model, tensor: Any) -> int | None:
    """The `input_dim` of the Embedding that the input feeds, or of the model's smallest."""
    embeddings = [
        layer
        for layer in keras_private.flatten_layers(model)
        if isinstance(layer, keras.layers.Embedding)
    ]
    fed = [layer.input_dim for layer in embeddings if _takes(layer, tensor)]
    if not fed and "int" in str(tensor.dtype):
        fed = [layer.input_dim for layer in embeddings]
    return min(fed, default=None)


def _takes(layer: keras.layers.Layer, tensor: Any) -> bool:
    try:
        return layer.input is tensor
    except (AttributeError, ValueError):  # not called on symbols, or more than once
        return False


def _sized(chosen: Chosen) -> tuple[InputSpec, ...]:
    """The inputs, each of a known size."""
    specs, given = input_specs(chosen.model), chosen.input_shape
    if not specs and given is None:
        raise UsageError(f"{chosen.name} does not declare its inputs: give --input_shape or --data")
    if not specs:
        return (InputSpec("x", given or (), "float32"),)
    if given is not None and len(specs) == 1:
        if not fits(given, specs[0].shape):
            raise UsageError(
                f"--input_shape must fit the model's input {specs[0].name!r}, "
                f"{shown(specs[0].shape)}. Received: {shown(given)}"
            )
        return (dataclasses.replace(specs[0], shape=given),)
    open_ended = next((spec for spec in specs if None in spec.shape), None)
    if open_ended is not None:
        remedy = "--input_shape or --data" if len(specs) == 1 else "--data"
        raise UsageError(
            f"the input {open_ended.name!r} of {chosen.name} has the shape "
            f"{shown(open_ended.shape)}: give {remedy}"
        )
    return specs


def shown(shape: Sequence[int | None]) -> str:
    """A shape in words: `(?, 32, 3)`."""
    return f"({', '.join('?' if size is None else str(size) for size in shape)})"


def _samples(spec: InputSpec, count: int, random: np.random.Generator, high: float) -> np.ndarray:
    shape = tuple(size or 1 for size in (count, *spec.shape))
    if spec.dtype == "string":
        return np.array([f"word{i}" for i in range(_WORDS)])[random.integers(0, _WORDS, shape)]
    if spec.dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if spec.is_float and spec.vocabulary is None:
        return random.random(shape, dtype=np.float32) * np.float32(high)
    below = spec.vocabulary or (256 if spec.dtype == "uint8" else _SMALLEST_VOCABULARY)
    return random.integers(0, below, shape).astype("int32" if spec.is_float else spec.dtype)
