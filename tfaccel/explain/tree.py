"""The layers of a model as a tree: their paths and the shapes that they return."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfaccel.compat import keras_private

# Layers whose own cells are part of the same loop.
_ONE_LOOP = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)


def walk(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """The model and the layers inside it, once each, in order, with their paths.

    Left out are inputs, which compute nothing, and the cells of recurrent layers.

    >>> inner = keras.Sequential([keras.layers.ReLU(name="relu")], name="inner")
    >>> [path for path, _ in walk(keras.Sequential([inner], name="outer"))]
    ['outer', 'inner', 'inner/relu']
    """
    seen: set[int] = set()

    def visit(layer: keras.layers.Layer, path: str) -> Iterator[tuple[str, keras.layers.Layer]]:
        if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
            return
        seen.add(id(layer))
        yield path or layer.name, layer
        for child in () if isinstance(layer, _ONE_LOOP) else _children(layer):
            yield from visit(child, f"{path}/{child.name}" if path else child.name)

    return visit(model, "")


def _children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that are directly inside a layer."""
    inside = keras_private.flatten_layers(layer)[1:]
    deeper = {id(low) for child in inside for low in keras_private.flatten_layers(child)[1:]}
    return [child for child in inside if id(child) not in deeper]


def output_shape(layer: keras.layers.Layer) -> str:
    """The shape that a call returns, such as `"?x32x32x3"`; empty where Keras can't tell."""
    try:
        shapes = [tensor.shape for tensor in keras.tree.flatten(layer.output)]
    except (AttributeError, ValueError, RuntimeError):  # not called on symbols, or more than once
        shapes = _computed_shapes(layer)
    return ", ".join(map(_shown, shapes))


def _computed_shapes(layer: keras.layers.Layer) -> list[Sequence[int | None]]:
    """What the layer makes of the shape that it was built for."""
    built_for = (layer.get_build_config() or {}).get("input_shape") if layer.built else None
    if not built_for:
        return []
    try:
        found = layer.compute_output_shape(tuple(built_for))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return []
    return [found] if all(size is None or isinstance(size, int) for size in found) else list(found)


def _shown(shape: Sequence[Any]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"
