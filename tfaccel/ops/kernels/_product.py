"""Products that can be differentiated as often as one likes, each direction by its own kernel.

A product is bilinear, and so are its two gradients: the gradients of each are the other
two again. So three kernels are enough for derivatives of every order, and TensorFlow never
has to differentiate a kernel itself.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import CallSpec

# Says which kernel computes a call.
Choose = Callable[[CallSpec], Kernel]


def product(spec: CallSpec, x: tf.Tensor, w: tf.Tensor, choose: Choose) -> tf.Tensor:
    """`x * w`: a convolution or a matrix product.

    Args:
        spec: what is computed; its direction does not matter.
        x: the input.
        w: the weights.
        choose: which kernel computes what.

    Returns:
        The product. Its gradients, and theirs, are computed by kernels too.
    """
    forward = spec.along("forward")

    # The functions use the tensors outside, not their arguments, so that a gradient of the
    # gradient finds them.
    @tf.custom_gradient
    def run(*_: tf.Tensor) -> Any:
        def gradient(dy: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return (
                input_gradient(spec, dy, w, tf.shape(x), choose),
                weight_gradient(spec, x, dy, tf.shape(w), choose),
            )

        return choose(forward)(forward, x, w), gradient

    return run(x, w)


def input_gradient(
    spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor, choose: Choose
) -> tf.Tensor:
    """The gradient of a product's input, which for matrices is `dy w'`.

    Args:
        spec: the product; its direction does not matter.
        dy: the gradient of what it makes.
        w: the weights.
        shape: the input's, an int32 vector.
        choose: which kernel computes what.
    """
    backward = spec.along("input_gradient")

    @tf.custom_gradient
    def run(*_: tf.Tensor) -> Any:
        def gradient(ddx: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return (
                product(spec, ddx, w, choose),
                weight_gradient(spec, ddx, dy, tf.shape(w), choose),
            )

        return choose(backward)(backward, dy, w, shape), gradient

    return run(dy, w)


def weight_gradient(
    spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor, choose: Choose
) -> tf.Tensor:
    """The gradient of a product's weights, which for matrices is `x' dy`.

    Args:
        spec: the product; its direction does not matter.
        x: the input.
        dy: the gradient of what it makes.
        shape: the weights', an int32 vector.
        choose: which kernel computes what.
    """
    backward = spec.along("weight_gradient")

    @tf.custom_gradient
    def run(*_: tf.Tensor) -> Any:
        def gradient(ddw: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return (
                input_gradient(spec, dy, ddw, tf.shape(x), choose),
                product(spec, x, ddw, choose),
            )

        return choose(backward)(backward, x, dy, shape), gradient

    return run(x, dy)
