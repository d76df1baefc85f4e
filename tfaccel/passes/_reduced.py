"""Layers that compute in 16 bits."""

import keras

_DTYPES = ("bfloat16", "float16")


def is_reduced(layer: keras.layers.Layer) -> bool:
    """Whether a layer computes in 16 bits, as it is configured at the moment."""
    return str(layer.compute_dtype) in _DTYPES
