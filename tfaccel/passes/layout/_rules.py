"""Which layers and operations can be computed with the channels last, and how."""

import dataclasses
from collections.abc import Iterator

import keras

from tfaccel.passes.layout import _follow as how
from tfaccel.passes.layout._elementwise import BINARY_OPERATIONS, UNARY_OPERATIONS
from tfaccel.passes.layout._follow import Follow


@dataclasses.dataclass(frozen=True)
class Rule:
    """How layers of one Keras class are followed, whose maths is made of these methods."""

    kind: type
    follow: Follow
    methods: tuple[str, ...] = ("call",)


def operation_follow(name: str) -> Follow | None:
    """How operations of a class (`Add`, `Relu`) are followed; None where they are not."""
    if name in UNARY_OPERATIONS:
        return how.elementwise
    if name in BINARY_OPERATIONS:
        return how.binary
    return how.concatenate if name == "Concatenate" else None


def _kinds(*names: str) -> list[type]:
    """The Keras layers of these names; not every Keras version has them all."""
    return [kind for name in names if (kind := getattr(keras.layers, name, None))]


def _named(pattern: str, *sizes: int) -> list[type]:
    return _kinds(*(pattern.format(size) for size in sizes))


def _rules() -> Iterator[Rule]:
    for kind in [*_named("Conv{}D", 1, 2, 3), *_named("Conv{}DTranspose", 1, 2, 3)]:
        yield Rule(kind, how.spatial, ("call", "convolution_op", "_compute_causal_padding"))
    windows = ("DepthwiseConv{}D", "SeparableConv{}D", "MaxPooling{}D", "AveragePooling{}D")
    whole = ("GlobalMaxPooling{}D", "GlobalAveragePooling{}D")
    adaptive = ("AdaptiveMaxPooling{}D", "AdaptiveAveragePooling{}D")
    for pattern in (*windows, *whole, *adaptive, "ZeroPadding{}D"):
        for kind in _named(pattern, 1, 2, 3):
            yield Rule(kind, how.spatial)
    for kind in _named("Cropping{}D", 2, 3):  # Cropping1D has no data_format
        yield Rule(kind, how.spatial)
    for kind in _named("UpSampling{}D", 2, 3):
        yield Rule(kind, how.spatial, ("call", "_resize_images", "_resize_volumes"))
    for kind in _named("SpatialDropout{}D", 1, 2, 3):
        yield Rule(kind, how.dropout, ("call", "_get_noise_shape"))
    yield Rule(keras.layers.Dropout, how.dropout)
    yield Rule(keras.layers.BatchNormalization, how.along_channels, ("call", "_moments"))
    groups = ("call", "_reshape_into_groups", "_apply_normalization", "_create_broadcast_shape")
    yield Rule(keras.layers.GroupNormalization, how.along_channels, groups)
    norms = ("LayerNormalization", "UnitNormalization", "Softmax")
    for kind in _kinds(*norms):
        yield Rule(kind, how.along_channels)
    for kind in _kinds("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"):
        yield Rule(kind, how.merge, ("call", "_merge_function"))
    yield Rule(keras.layers.Concatenate, how.concatenate, ("call", "_merge_function"))
    for kind in _kinds("ReLU", "LeakyReLU", "ELU"):
        yield Rule(kind, how.elementwise)
    yield Rule(keras.layers.Activation, how.activation)
    yield Rule(keras.layers.PReLU, how.prelu)
    yield Rule(keras.layers.Rescaling, how.rescaling)
    yield Rule(keras.layers.Reshape, how.reshape)
    yield Rule(keras.layers.Flatten, how.flatten)


RULES: tuple[Rule, ...] = tuple(_rules())
