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
    """A tensor that is to be normalised, before it is known what follows."""

    # `(..., channels)`, all sizes but the first known; 16 bits are computed in float32.
    x: tf.Tensor
    # scale, offset: gamma and beta, `(channels,)`, float32.
    scale: tf.Tensor
    offset: tf.Tensor
    # mean, variance: `(channels,)`, float32.
    mean: tf.Tensor
    variance: tf.Tensor
    epsilon: float  # added to the variance
    # Whether mean and variance are those of `x`, so that gradients go through them, and not given
    # numbers.
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
        value, gradient = _loops(formula, self.epsilon, self.of_batch)
        inputs = (self.x, self.scale, self.offset)
        statistics = (self.mean, self.variance)
        note(self.x)

        def plain(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
            y = formula.value(by_keras(x, scale, offset, self.epsilon))
            return tf.cast(y, x.dtype)

        def own_gradient(dy: tf.Tensor) -> Any:
            return gradient(dy, *inputs, *statistics)

        own_value = functools.partial(value, *inputs, *statistics)
        return with_gradient(inputs, own_value, own_gradient, plain if self.of_batch else None)


def by_keras(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    """Batch normalization by the ops of Keras's layer, in float32, of `(..., channels)`.

    `keras.ops.moments` stops the gradient of the mean in the variance (TensorFlow's
    `tf.nn.moments` does). That gradient is zero, but its derivative is not: Keras's second
    derivatives lack a term, and so must those of a plan. `scale` and `offset` are
    `(channels,)`, float32.
    """
    wide = _wide(x)
    mean, variance = keras.ops.moments(wide, axes=list(range(x.shape.rank - 1)))
    return keras.ops.batch_normalization(
        wide, mean, variance, axis=-1, offset=offset, scale=scale, epsilon=epsilon
    )


def moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """The mean and the (biased) variance of each channel, which no gradient goes through.

    Args:
        x: `(..., channels)`.

    >>> [t.numpy().tolist() for t in moments(tf.constant([[1.0, 2.0], [3.0, 2.0]]))]
    [[2.0, 2.0], [1.0, 0.0]]
    """
    mean, variance = _moments(tf.stop_gradient(x))
    return mean, variance


def _wide(x: tf.Tensor) -> tf.Tensor:
    return tf.cast(x, tf.float32)


def _rows(x: tf.Tensor) -> tf.Tensor:
    """`(positions, channels)`, in which XLA's loops are fastest."""
    return tf.reshape(x, [tf.reduce_prod(tf.shape(x)[:-1]), x.shape[-1]])


def _sum(rows: tf.Tensor, like: tf.Tensor) -> tf.Tensor:
    """The sum over all but the channels: first in each sample, which threads can share.

    `rows` are `(positions, channels)`, and those of the tensor `like`.
    """
    if like.shape.rank > 2:
        samples = [tf.shape(like)[0], math.prod(like.shape[1:-1]), like.shape[-1]]
        rows = tf.reduce_sum(tf.reshape(rows, samples), 1)
    return tf.reduce_sum(rows, 0)


@tf.function(jit_compile=True, autograph=False)
def _moments(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    # The mean first: sums of squares less squares of sums would lose digits.
    rows = _rows(_wide(x))
    count = tf.cast(tf.shape(rows)[0], tf.float32)
    mean = _sum(rows, x) / count
    return mean, _sum(tf.square(rows - mean), x) / count


@functools.cache
def _loops(formula: ActivationFormula, epsilon: float, of_batch: bool) -> tuple[Function, Function]:
    """What XLA compiles for one activation `f`: two functions of `(x, scale, offset, *statistics)`.

    The first gives `y`; the second is given `dy` too, and gives `(dx, dscale, doffset)`. With
    `i = 1 / sqrt(variance + epsilon)` and `c = x - mean`, all by rows:

        z = c scale i + offset,  y = f(z),  dz = dy f'(z)
        dscale = i sum(dz c),  doffset = sum(dz)
        dx = scale i (dz - doffset / n - c i dscale / n)  through the statistics of n rows
        dx = scale i dz                                   with given ones
    """

    def before(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, *statistics: tf.Tensor) -> Any:
        """`z`, `c` and `i`."""
        mean, variance = statistics
        centred, inverse = _rows(_wide(x)) - mean, tf.math.rsqrt(variance + epsilon)
        return centred * (scale * inverse) + offset, centred, inverse

    def value(x: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        y = formula.value(before(x, *rest)[0])
        return tf.cast(tf.reshape(y, tf.shape(x)), x.dtype)

    def parts(dy: tf.Tensor, x: tf.Tensor, *rest: tf.Tensor) -> Any:
        """`dz`, `c` and `i`."""
        z, centred, inverse = before(x, *rest)
        return _rows(_wide(dy)) * formula.derivative(z), centred, inverse

    def sums(
        x: tf.Tensor, dz: tf.Tensor, centred: tf.Tensor, inverse: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        # 0 for an empty batch, whose deviation is not a number.
        return tf.math.multiply_no_nan(inverse, _sum(dz * centred, x)), _sum(dz, x)

    def of_weights(dy: tf.Tensor, x: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return sums(x, *parts(dy, x, *rest))

    def of_all(
        dy: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, *rest: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        dz, centred, inverse = parts(dy, x, scale, *rest)
        dscale, doffset = sums(x, dz, centred, inverse)
        count = tf.cast(tf.shape(dz)[0], tf.float32)
        dx = dz - doffset / count - centred * (dscale * inverse / count)
        dx = tf.reshape(dx * (scale * inverse), tf.shape(x))
        return tf.cast(dx, x.dtype), dscale, doffset

    def of_input(dy: tf.Tensor, x: tf.Tensor, scale: tf.Tensor, *rest: tf.Tensor) -> tf.Tensor:
        dz, _, inverse = parts(dy, x, scale, *rest)
        return tf.cast(tf.reshape(dz * (scale * inverse), tf.shape(x)), x.dtype)

    compiled = functools.partial(tf.function, jit_compile=True, autograph=False)
    if of_batch:
        return compiled(value), compiled(of_all)
    # Apart, as a frozen layer has no use for its weights' gradients.
    inputs, weights = compiled(of_input), compiled(of_weights)
    return compiled(value), lambda *tensors: (inputs(*tensors), *weights(*tensors))
