"""Whether numbers are finite: of a value, of a graph's tensors, or as far as a reference's are."""

import math
from typing import Any

import numpy as np
import tensorflow as tf


def all_finite(structure: Any) -> bool:
    """Whether every number of a value, or of a structure of them, is finite."""
    return all(_is_finite(value) for value in tf.nest.flatten(structure))


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return bool(np.all(np.isfinite(np.asarray(value, dtype=np.float64))))


def all_finite_in_graph(structure: Any) -> tf.Tensor:
    """A boolean scalar: whether every floating-point tensor of a structure is finite."""
    leaves = tf.nest.flatten(structure, expand_composites=True)
    floats = [t for t in leaves if isinstance(t, tf.Tensor) and t.dtype.is_floating]
    return tf.reduce_all([True, *(tf.reduce_all(tf.math.is_finite(t)) for t in floats)])


def finite_where(reference: np.ndarray, candidate: np.ndarray) -> bool:
    """Whether a candidate is finite wherever its reference, of the same shape, is."""
    return bool(np.all(np.isfinite(candidate) | ~np.isfinite(reference)))
