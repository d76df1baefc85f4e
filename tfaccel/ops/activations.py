"""Activations of several elementwise ops, and their gradients, each as one loop.

TensorFlow computes `gelu(x)` by about five ops and its gradient by ten, and each reads and
writes whole tensors. XLA makes one loop of each, and only `x` is kept in between. Where XLA
would have to compile anew for every size, TensorFlow's ops compute the same formulas.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.core.compiled_sizes import note
from tfaccel.core.derivatives import with_gradient

Function = Callable[..., tf.Tensor]


@dataclasses.dataclass(frozen=True)
class ActivationFormula:
    """An elementwise activation, its derivative, and where the formulas are from."""

    value: Function
    derivative: Function
    source: str

    def __call__(self, x: tf.Tensor, jit_compile: bool = True) -> tf.Tensor:
        """The activation of `x`, which has gradients of every order.

        Args:
            x: any shape; 16-bit values are computed in float32.
            jit_compile: whether XLA may compile it. XLA compiles for each size that it meets, so
                it is used only where all sizes but the first are known.

        Returns:
            A tensor of the shape and dtype of `x`.

        >>> GELU(tf.constant([-1.0, 0.0, 1.0]), jit_compile=False).numpy().round(4)
        array([-0.1587,  0.    ,  0.8413], dtype=float32)
        """
        known = x.shape.rank is not None and None not in x.shape[1:]
        compiled = jit_compile and known
        forward, backward = _functions(self, compiled)

        if compiled:
            note(x)
        return with_gradient([x], lambda: forward(x), lambda dy: backward(x, dy))


@functools.cache
def _functions(formula: ActivationFormula, jit_compile: bool) -> tuple[Function, Function]:
    def forward(x: tf.Tensor) -> tf.Tensor:
        """`f(x)`."""
        return tf.cast(formula.value(_wide(x)), x.dtype)

    def backward(x: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        """`f'(x) dy`."""
        return tf.cast(formula.derivative(_wide(x)) * _wide(dy), x.dtype)

    if not jit_compile:
        return forward, backward
    # One trace for all sizes of a rank; XLA itself compiles for the size it is given.
    compiled = functools.partial(tf.function, jit_compile=True, autograph=False)
    return compiled(forward), compiled(backward)


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32) if x.dtype in (tf.float16, tf.bfloat16) else x


def _normal_cdf(x: tf.Tensor) -> tf.Tensor:
    # Where x is far below 0, 1 + erf(x) would be rounding errors alone.
    return 0.5 * tf.math.erfc(x * -math.sqrt(0.5))


def _normal_density(x: tf.Tensor) -> tf.Tensor:
    return math.sqrt(0.5 / math.pi) * tf.exp(-0.5 * tf.square(x))


def _silu_derivative(x: tf.Tensor) -> tf.Tensor:
    share = tf.sigmoid(x)
    return share * (1.0 + x * (1.0 - share))


IDENTITY = ActivationFormula(value=lambda x: x, derivative=tf.ones_like, source="no activation")
RELU = ActivationFormula(
    value=tf.nn.relu,
    derivative=lambda x: tf.cast(x > 0, x.dtype),
    source="Nair and Hinton, https://dl.acm.org/doi/10.5555/3104322.3104425",
)
RELU6 = ActivationFormula(
    value=tf.nn.relu6,
    derivative=lambda x: tf.cast((x > 0) & (x < 6), x.dtype),
    source="Howard et al., https://arxiv.org/abs/1704.04861",
)
GELU = ActivationFormula(
    value=lambda x: x * _normal_cdf(x),
    derivative=lambda x: _normal_cdf(x) + x * _normal_density(x),
    source="Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415",
)
SILU = ActivationFormula(
    value=lambda x: x * tf.sigmoid(x),
    derivative=_silu_derivative,
    source="Elfwing et al., https://arxiv.org/abs/1702.03118",
)
_OF_KERAS = (
    (keras.activations.relu, RELU),
    (keras.activations.relu6, RELU6),
    (keras.activations.gelu, GELU),
    (keras.activations.silu, SILU),
)


def formula_of(activation: Any) -> ActivationFormula | None:
    """The formula of one of Keras's activations; None for any other function."""
    return next((formula for own, formula in _OF_KERAS if own is activation), None)
