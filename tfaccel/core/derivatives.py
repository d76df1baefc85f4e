"""First gradients by formulas of tfaccel's, and those of every higher order by the plain ops.

A gradient written by hand is a formula for the first order, and TensorFlow would differentiate
that formula for the second. Where the layer's own ops stop a gradient that is zero in the first
order and not in the second (`tf.nn.moments` does), the two differ, and a loss that contains a
gradient (a gradient penalty, a differential equation) would train differently. So the second
order is computed from the ops that the layer itself would run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf


def with_gradient(
    inputs: Sequence[tf.Tensor],
    value: Callable[[], Any],
    gradient: Callable[..., Any],
    plain: Callable[..., Any] | None = None,
) -> Any:
    """`value()`, with a formula for its gradient, and maybe another for the gradients of that.

    The functions use the tensors `inputs` outside, so that a gradient of the gradient finds them.

    Args:
        inputs: the tensors with respect to which is differentiated.
        value: computes the result, or several.
        gradient: of the results' gradients, as those of the inputs.
        plain: of the inputs: the same result by ops that have the right derivatives of every
            order. It is called only where a second derivative is taken. None where the
            derivatives of the ops in `gradient` are right.

    >>> x = tf.constant(3.0)
    >>> with tf.GradientTape() as tape:
    ...     tape.watch(x)
    ...     y = with_gradient([x], lambda: x**3, lambda dy: [3 * x**2 * dy], lambda x: x**3)
    >>> float(tape.gradient(y, x))
    27.0
    """

    def first(*upstream: tf.Tensor) -> Any:
        def second(*gradients: tf.Tensor) -> Any:
            assert plain is not None
            return _second_order(plain, inputs, upstream, gradients)

        return with_gradient([*inputs, *upstream], lambda: gradient(*upstream), second)

    own = gradient if plain is None else first
    return tf.custom_gradient(lambda *_: (value(), own))(*inputs)


def _second_order(
    plain: Callable[..., Any],
    inputs: Sequence[tf.Tensor],
    upstream: Sequence[tf.Tensor],
    gradients: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, ...]:
    """The gradients of a gradient, with respect to its inputs and its upstream gradients.

    They are TensorFlow's ops again, so derivatives of them are what they would be anyway.
    `gradients` are those of the gradients that went out, one for each of `inputs`.
    """
    zero = tf.UnconnectedGradients.ZERO
    sources = [*inputs, *upstream]
    with tf.GradientTape() as outer:
        outer.watch(sources)
        with tf.GradientTape() as inner:
            inner.watch(inputs)
            outputs = tf.nest.flatten(plain(*inputs))
        first = inner.gradient(outputs, inputs, list(upstream), unconnected_gradients=zero)
    return tuple(outer.gradient(first, sources, list(gradients), unconnected_gradients=zero))
