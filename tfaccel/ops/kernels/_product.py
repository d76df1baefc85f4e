"""Products with gradients of every order, each direction by a kernel of its own.

A product is bilinear, and so are its two gradients: the gradients of each are the other
two again. So three kernels are enough for derivatives of every order, and TensorFlow never
has to differentiate a kernel itself.
"""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from tfaccel.core.derivatives import with_gradient
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._spec import CallSpec

# Says which kernel computes a call.
Choose = Callable[[CallSpec], Kernel]


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Says which kernels compute the products of a model's layers."""

    # Takes a layer's name and its forward products; gives whether a kernel of tfaccel's is to
    # compute any direction of them. If not, the layer's own code does.
    wanted: Callable[[str, list[CallSpec]], bool]
    choose: Choose  # which kernel computes a call


def product(spec: CallSpec, x: tf.Tensor, w: tf.Tensor, choose: Choose) -> tf.Tensor:
    """`x * w`, a convolution or a matrix product, with gradients of every order by kernels.

    Args:
        spec: what is computed; its direction does not matter.
        x, w: the input and the weights.
        choose: gives the kernel of a call.

    Returns:
        A tensor of the shape `spec.y`, in the operands' dtype.
    """
    forward = spec.along("forward")
    return with_gradient(
        (x, w),
        lambda: choose(forward)(forward, x, w),
        lambda dy: (
            input_gradient(spec, dy, w, tf.shape(x), choose),
            weight_gradient(spec, x, dy, tf.shape(w), choose),
        ),
    )


def input_gradient(
    spec: CallSpec, dy: tf.Tensor, w: tf.Tensor, shape: tf.Tensor, choose: Choose
) -> tf.Tensor:
    """The gradient of a product's input, which for matrices is `dy w'`.

    `dy` is the gradient of what the product makes, `shape` the input's, an int32 vector.
    """
    backward = spec.along("input_gradient")
    return with_gradient(
        (dy, w),
        lambda: choose(backward)(backward, dy, w, shape),
        lambda ddx: (
            product(spec, ddx, w, choose),
            weight_gradient(spec, ddx, dy, tf.shape(w), choose),
        ),
    )


def weight_gradient(
    spec: CallSpec, x: tf.Tensor, dy: tf.Tensor, shape: tf.Tensor, choose: Choose
) -> tf.Tensor:
    """The gradient of a product's weights, which for matrices is `x' dy`.

    `dy` is the gradient of what the product makes, `shape` the weights', an int32 vector.
    """
    backward = spec.along("weight_gradient")
    return with_gradient(
        (x, dy),
        lambda: choose(backward)(backward, x, dy, shape),
        lambda ddw: (
            input_gradient(spec, dy, ddw, tf.shape(x), choose),
            product(spec, x, ddw, choose),
        ),
    )
