"""The kinds of work of a model, by which measurements of other models count for it."""

import math
from collections.abc import Mapping
from typing import Any

import keras

from tfaccel.core.prior import CONVOLUTIONS
from tfaccel.core.workload import Workload, batch_size

_KINDS: Mapping[str, tuple[type, ...]] = {
    "depthwise": (
        keras.layers.DepthwiseConv1D,
        keras.layers.DepthwiseConv2D,
        keras.layers.SeparableConv1D,
        keras.layers.SeparableConv2D,
    ),
    "convolution": CONVOLUTIONS,
    "attention": (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention),
    "recurrent": (keras.layers.RNN,),
    "product": (keras.layers.Dense, keras.layers.EinsumDense),
    "normalization": (
        keras.layers.BatchNormalization,
        keras.layers.LayerNormalization,
        keras.layers.GroupNormalization,
    ),
}
# The cost of an elementwise op on a number, in multiplications of a product.
_ELEMENTWISE = 50
# Likewise, the cost of updating a weight by an optimizer with two slots.
_UPDATE = 50


def layer_mix(workload: Workload) -> dict[str, float]:
    """The estimated share of each kind of work in a step; they add up to 1.

    Counted from shapes of weights and outputs, so a layer of the user's own whose parts Keras
    does not know counts by its weights alone. `"size"`, beside the shares, is the decimal
    logarithm of all of it: a small step loses more time between its ops than in them.
    """
    samples = batch_size(workload.batches[0]) if workload.batches else 1
    work: dict[str, float] = {}
    for layer in workload.layers:
        kind = next((k for k, classes in _KINDS.items() if isinstance(layer, classes)), "")
        if kind:
            work[kind] = work.get(kind, 0.0) + samples * _work(kind, layer)
    work["update"] = float(_UPDATE * sum(map(_count, workload.model.trainable_variables)))
    whole = sum(work.values())
    shares = {kind: amount / whole for kind, amount in work.items()} if whole else {}
    return shares | {"size": math.log10(1 + whole)}


def distance(mix: Mapping[str, float], other: Mapping[str, float]) -> float:
    """How unlike two mixes are: half the sum of differences of shares, and a bit for the size."""
    kinds = {*mix, *other} - {"size"}
    apart = sum(abs(mix.get(kind, 0.0) - other.get(kind, 0.0)) for kind in kinds) / 2
    return apart + 0.1 * abs(mix.get("size", 0.0) - other.get("size", 0.0))


def _work(kind: str, layer: keras.layers.Layer) -> float:
    """Multiplications for one sample, forward."""
    shape = _output_shape(layer)
    if kind == "normalization":
        return _ELEMENTWISE * math.prod(shape)
    weights = sum(_count(weight) for weight in layer.weights if len(weight.shape) > 1)
    if kind == "recurrent":
        steps = _input_shape(layer)[:1]
        return weights * math.prod(steps)
    return weights * math.prod(shape[:-1])  # channels last, as nearly all are


def _output_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    return _known(lambda: layer.output.shape)


def _input_shape(layer: keras.layers.Layer) -> tuple[int, ...]:
    return _known(lambda: layer.input.shape)


def _known(read: Any) -> tuple[int, ...]:
    """The sizes without the batch's; those of a layer outside a graph are not known."""
    try:
        return tuple(size or 1 for size in read()[1:])
    except (AttributeError, TypeError, ValueError):
        return ()


def _count(variable: Any) -> int:
    return math.prod(variable.shape)
