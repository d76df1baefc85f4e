"""A model's weights and inputs, changed as another rounding might have left them.

How much a step changes by that is the model's own sensitivity to rounding.
"""

from collections.abc import Iterable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.looped import Call
from tfaccel.core.replicas import on_replicas

# A sum of n products is off by about sqrt(n) unit roundoffs when its terms come in another
# order, and a layer's sums have about a thousand terms (Higham and Mary, A New Approach to
# Probabilistic Rounding Error Analysis, 2019, https://doi.org/10.1137/18M1226312).
ROUNDINGS = 32
# What is computed in 16 bits is summed in float32 and rounded once, by this at most.
_UNIT_ROUNDOFFS = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
# The most that rounding moves a number by, relative to it: one unit roundoff just above a power
# of two, half of one just below the next. On average over a binade's logarithm it is this share.
_USUAL_ROUNDOFF = 0.72


def round_otherwise(weights: Iterable[Any], layers: Iterable[keras.layers.Layer]) -> None:
    """Moves each weight by as much as rounding may, the same way each time.

    Up to `ROUNDINGS` unit roundoffs of its own dtype, or one of its layer's where that
    computes in 16 bits.

    Args:
        weights: variables. Those that are not floating-point numbers stay as they are.
        layers: a model and the layers inside it, each after those around it.
    """
    generator = np.random.default_rng(0)
    dtypes = {id(v): str(layer.compute_dtype) for layer in layers for v in layer.variables}
    for variable in weights:
        value = keras.ops.convert_to_numpy(variable)
        if value.dtype.kind != "f":
            continue
        usual = ROUNDINGS * float(np.finfo(value.dtype).eps) / 2
        most = _UNIT_ROUNDOFFS.get(dtypes.get(id(variable), ""), usual)
        variable.assign(value * (1 + most * generator.uniform(-1, 1, value.shape)))


def round_once(weights: Iterable[Any], dtype: str) -> None:
    """Rounds the values of each float variable to a 16-bit dtype; its own dtype stays.

    Args:
        weights: variables.
        dtype: `"bfloat16"` or `"float16"`.
    """
    for variable in weights:
        variable.assign(_rounded(tf.convert_to_tensor(variable), dtype))


def move(weights: Iterable[Any], dtype: str) -> None:
    """Moves each float variable by as much as rounding it to a 16-bit dtype usually does.

    `round_once` does not change numbers that are exact in the dtype: the ones that normalizations
    begin with, and weights that were kept in 16 bits. Results that a step computes from them in
    16 bits are rounded all the same. Every call moves them in the same way.

    Args:
        weights: variables.
        dtype: `"bfloat16"` or `"float16"`.
    """
    generator = np.random.default_rng(0)
    most = _USUAL_ROUNDOFF * _UNIT_ROUNDOFFS[dtype]
    for variable in weights:
        value = keras.ops.convert_to_numpy(variable)
        if value.dtype.kind == "f":
            variable.assign(value * (1 + most * generator.uniform(-1, 1, value.shape)))


def rounded_inputs(batch: Any, dtype: str, strategy: tf.distribute.Strategy | None) -> Any:
    """A batch whose inputs are rounded to a 16-bit dtype; targets and weights stay.

    Args:
        batch: as a step is given it: inputs, or a tuple that begins with them; of a loop, the
            arguments of a call, the first of which is or has the inputs.
        dtype: `"bfloat16"` or `"float16"`.
        strategy: what the batch was distributed by; None where it was not.
    """
    if isinstance(batch, Call):
        return _rounded_call(batch, dtype)

    @tf.function(autograph=False)
    def rounded(batch: Any) -> Any:
        inputs, *others = batch if isinstance(batch, tuple | list) else (batch,)
        near = tf.nest.map_structure(
            lambda leaf: _rounded(leaf, dtype), inputs, expand_composites=True
        )
        return (near, *others) if isinstance(batch, tuple | list) else near

    return on_replicas(strategy, rounded, batch)


def _rounded_call(call: Call, dtype: str) -> Call:
    """The call of a loop with its inputs rounded; it may hold more than tensors."""
    args = call.args
    if len(args) == 1 and isinstance(args[0], tuple | list):
        first, *others = args[0]
        leaves = tf.nest.flatten([_rounded_leaves(first, dtype), *others])
        args = (tf.nest.pack_sequence_as(args[0], leaves),)
    else:
        args = (*_rounded_leaves(args[:1], dtype), *args[1:])
    return Call(args, call.kwargs if call.args else _rounded_leaves(call.kwargs, dtype))


def _rounded_leaves(structure: Any, dtype: str) -> Any:
    return tf.nest.map_structure(
        lambda leaf: _rounded(leaf, dtype) if tf.is_tensor(leaf) else leaf,
        structure,
        expand_composites=True,
    )


def _rounded(value: Any, dtype: str) -> Any:
    return tf.cast(tf.cast(value, dtype), value.dtype) if value.dtype.is_floating else value
