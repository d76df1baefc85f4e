"""Layers that compute in 16 bits."""

import keras

from tfaccel.measure.numerics import SIXTEEN_BITS


def is_reduced(layer: keras.layers.Layer) -> bool:
    """Whether a layer computes in 16 bits, as it is configured at the moment."""
    return str(layer.compute_dtype) in SIXTEEN_BITS
