"""Batch normalization, and the activation behind it, by few loops over memory.

FusedBatchNormV3 on a CPU reads and writes its tensors about twice as often as it must, and an
activation behind it goes through them again. Here XLA makes one loop each of the mean, of the
variance, of what is left to do forward (the activation included), and of the sums and the
input's gradient on the way back. Only the input is kept in between.
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
from tfaccel.ops.activations import IDENTITY, ActivationFormula

Function = Callable[..., Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Normalised:
    """A tensor that is to be normalised, before it is known what follows.

    Attributes:
        x: `(..., channels)`, all sizes but the first known; 16 bits are computed in float32.
        scale, offset: gamma and beta, `(channels,)`, float32.
        mean, variance: `(channels,)`, float32.
        epsilon: added to the variance.
        of_batch: whether mean and variance are those of `x`, so that gradients go through
            them, and not given numbers.
    """

    x: tf.Tensor
    scale: tf.Tensor
    offset: tf.Tensor
    mean: tf.Tensor
    variance: tf.Tensor
    epsilon: float
    of_batch: bool

    def then(self, formula: ActivationFormula = IDENTITY) -> tf.Tensor:
        """`formula((x - mean) * scale / sqrt(variance + epsilon) + offset)`.

        Its derivatives of every order are those of Keras's layer: the first by the formulas
        below, others, where they go through the batch's statistics, by `by_keras`.

        >>> x = tf.constant([[1.0], [3.0]])
        >>> one, zero = tf.ones(1), tf.zeros(1)
        >>> Normalised(x, one, zero, *moments(x), 0.0, of_batch=True).then().numpy().ravel()
        array([-1.,  1.], dtype=float32)
        """
        loops = _loops(formula, self.epsilon, self.of_batch)
        inputs = (self.x, self.scale, self.offset)
        statistics = (self.mean, self.variance)

        note(self.x)

        def value() -> tf.Tensor:
            return loops.value(*inputs, *statistics)

        def gradient(dy: tf.Tensor) -> Any:
            return loops.gradient(dy, *inputs, *statistics)

        def plain(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
            y = formula.value(by_keras(x, scale, offset, self.epsilon))
            return tf.cast(y, x.dtype)

        if self.of_batch:
            return with_gradient(inputs, value, gradient, plain)
        return tf.custom_gradient(lambda *_: (value(), gradient))(*inputs)


def by_keras(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Batch normalization by the ops of Keras's layer, in float32, with the channels last.

    `keras.ops.moments` stops the gradient of the mean in the variance (TensorFlow's
    `tf.nn.moments` does). That gradient is zero, but its derivative is not: second
    derivatives lack a term, and with it a step under Keras trains as it does.

    Args:
        x: `(..., channels)`.
        scale, offset: gamma and beta, `(channels,)`, float32.
        epsilon: added to the variance.
    """
    wide = _wide(x)
    mean, variance = keras.ops.moments(wide, axes=list(range(x.shape.rank - 1)))
    return keras.ops.batch_normalization(
        wide, mean, variance, axis=-1, offset=offset, scale=scale, epsilon=epsilon
    )


def moments(x: tf.Tensor, jit_compile: bool = True) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean and the (biased) variance of each channel, which no gradient goes through.

    Args:
        x: `(..., channels)`.
        jit_compile: whether XLA compiles it.

    >>> [t.numpy().tolist() for t in moments(tf.constant([[1.0, 2.0], [3.0, 2.0]]))]
    [[2.0, 2.0], [1.0, 0.0]]
    """
    run = _compiled_moments if jit_compile else _moments
    mean, variance = run(tf.stop_gradient(x))
    return mean, variance


@dataclasses.dataclass(frozen=True)
class _Loops:
    """What XLA compiled for one activation.

    Attributes:
        value: of `(x, scale, offset, mean, variance)`.
        gradient: of `(dy, x, scale, offset, mean, variance)`, as those of x, scale, offset.
    """

    value: Function
    gradient: Function


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


def _rows(x: tf.Tensor) -> tf.Tensor:
    """`(positions, channels)`, in which XLA's loops are fastest."""
    return tf.reshape(x, [tf.reduce_prod(tf.shape(x)[:-1]), x.shape[-1]])


def _sum(rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """Over all but the channels: first in each sample, which threads can share.

    Args:
        rows: `(positions, channels)`.
        like: the tensor that these are rows of.
    """
    if like.shape.rank > 2:
        samples = [tf.shape(like)[0], math.prod(like.shape[1:-1]), like.shape[-1]]
        rows = tf.reduce_sum(tf.reshape(rows, samples), 1)
    return tf.reduce_sum(rows, 0)


def _scaled(total: tf.Tensor, inverse: tf.Tensor) -> tf.Tensor:
    """Their product, and 0 for an empty batch, whose deviation is not a number."""
    return tf.math.multiply_no_nan(inverse, total)


def _count(rows: tf.Tensor) -> tf.Tensor:
    """How many numbers a channel has."""
    return tf.cast(tf.shape(rows)[0], tf.float32)


def _moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # The mean first: sums of squares less squares of sums would lose digits.
    rows = _rows(_wide(x))
    count = _count(rows)
    mean = _sum(rows, x) / count
    return mean, _sum(tf.square(rows - mean), x) / count


_compiled_moments = tf.function(_moments, jit_compile=True, autograph=False)


@functools.cache
def _loops(formula: ActivationFormula, epsilon: float, of_batch: bool) -> _Loops:
    def value(
        x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, mean: tf.Tensor, variance: tf.Tensor
    ) -> tf.Tensor:
        factor = scale * tf.math.rsqrt(variance + epsilon)
        y = formula.value((_rows(_wide(x)) - mean) * factor + offset)
        return tf.cast(tf.reshape(y, tf.shape(x)), x.dtype)

    def parts(
        dy: tf.Tensor,
        x: tf.Tensor,
        scale: tf.Tensor,
        offset: tf.Tensor,
        mean: tf.Tensor,
        variance: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """By rows: the gradient before the activation, x - mean, and 1 / deviation."""
        inverse = tf.math.rsqrt(variance + epsilon)
        centred = _rows(_wide(x)) - mean
        before = centred * (scale * inverse) + offset
        return _rows(_wide(dy)) * formula.derivative(before), centred, inverse

    def of_weights(dy: tf.Tensor, x: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        dz, centred, inverse = parts(dy, x, *rest)
        return _scaled(_sum(dz * centred, x), inverse), _sum(dz, x)

    def of_all(
        dy: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, *rest: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        dz, centred, inverse = parts(dy, x, scale, *rest)
        dscale, doffset = _scaled(_sum(dz * centred, x), inverse), _sum(dz, x)
        count = _count(dz)
        dx = dz - doffset / count - centred * (dscale * inverse / count)
        dx = tf.reshape(dx * (scale * inverse), tf.shape(x))
        return tf.cast(dx, x.dtype), dscale, doffset

    def of_input(dy: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        dz, _, inverse = parts(dy, x, scale, *rest)
        return tf.cast(tf.reshape(dz * (scale * inverse), tf.shape(x)), x.dtype)

    compiled = functools.partial(tf.function, jit_compile=True, autograph=False)
    if of_batch:
        return _Loops(compiled(value), compiled(of_all))
    # Apart, as a frozen layer has no use for its weights' gradients.
    inputs, weights = compiled(of_input), compiled(of_weights)
    return _Loops(compiled(value), lambda *tensors: (inputs(*tensors), *weights(*tensors)))
