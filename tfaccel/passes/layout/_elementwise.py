"""Functions that treat every element of a tensor alike, wherever the channels are."""

import functools
from typing import Any

import keras
import tensorflow as tf

# Those of keras.activations with an axis (softmax, log_softmax, sparsemax, glu) are not.
_ACTIVATIONS = (
    *("celu", "elu", "exponential", "gelu", "hard_shrink", "hard_sigmoid", "hard_silu"),
    *("hard_tanh", "leaky_relu", "linear", "log_sigmoid", "mish", "relu", "relu6", "selu"),
    *("sigmoid", "silu", "soft_shrink", "softplus", "softsign", "sparse_plus"),
    *("sparse_sigmoid", "squareplus", "tanh", "tanh_shrink", "threshold"),
)
_OPS = (*_ACTIVATIONS, "abs", "exp", "expm1", "log", "log1p", "negative", "sqrt", "square")
_TENSORFLOW = ("elu", "gelu", "leaky_relu", "relu", "relu6", "selu", "sigmoid", "silu")
_TENSORFLOW_NN = (*_TENSORFLOW, "softplus", "softsign", "swish", "tanh")


def _of(module: Any, names: tuple[str, ...]) -> list[Any]:
    return [getattr(module, name) for name in names if hasattr(module, name)]


_FUNCTIONS = frozenset(
    [
        *_of(keras.activations, _ACTIVATIONS),
        *_of(keras.ops, _OPS),
        *_of(tf.nn, _TENSORFLOW_NN),
        *_of(tf, ("abs", "exp", "identity", "sigmoid", "square", "tanh")),
    ]
)

# Classes behind keras.ops functions, as they stand in a Functional model's graph.
UNARY_OPERATIONS = frozenset(
    ["Absolute", *("".join(part.capitalize() for part in name.split("_")) for name in _OPS)]
)
BINARY_OPERATIONS = frozenset(
    ("Add", "Subtract", "Multiply", "Divide", "TrueDivide", "Maximum", "Minimum")
)


def is_elementwise(function: Any) -> bool:
    """Whether a function is known to treat every element alike."""
    if isinstance(function, functools.partial):
        numbers = all(isinstance(v, int | float | bool) for v in function.keywords.values())
        return numbers and not function.args and is_elementwise(function.func)
    return getattr(function, "__hash__", None) is not None and function in _FUNCTIONS
