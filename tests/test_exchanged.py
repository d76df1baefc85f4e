"""The depthwise weight gradient with its operands exchanged, against TensorFlow's in float64."""

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.ops.kernels import convolution_spec
from tfaccel.ops.kernels.implementations import exchanged

(KERNEL,) = exchanged.KERNELS
CASES = {
    "odd sides": ((3, 7, 5, 4), (5, 3, 4, 1), {"padding": "same"}),
    "a stride": ((2, 9, 8, 3), (5, 5, 3, 1), {"strides": 2, "padding": "same"}),
    "a stride and no padding": ((2, 9, 9, 3), (3, 3, 3, 1), {"strides": 2}),
    "two filters a channel": ((2, 6, 6, 3), (3, 3, 3, 2), {"strides": 2, "padding": "same"}),
    "dilation": ((2, 9, 9, 3), (3, 3, 3, 1), {"dilation_rate": 2, "padding": "same"}),
    "a window larger than the image": ((2, 2, 3, 3), (5, 5, 3, 1), {"padding": "same"}),
    "a stride larger than the image": (
        (2, 2, 2, 3),
        (3, 3, 3, 1),
        {"strides": 3, "padding": "same"},
    ),
    "one pixel": ((1, 1, 1, 3), (1, 1, 3, 2), {}),
}
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 1e-2, "float16": 2e-3}


def operands(x, w, arguments, dtype):
    """A call's spec in two dtypes, its operands, and its result by TensorFlow in float64."""
    spec = convolution_spec("depthwise_conv2d", x, w, dtype, **arguments).along("weight_gradient")
    rng = np.random.default_rng(0)
    image = tf.cast(rng.normal(size=spec.x), dtype)
    gradient = tf.cast(rng.normal(size=spec.y), dtype)
    weights = tf.zeros(w, tf.float64)
    with tf.GradientTape() as tape:
        tape.watch(weights)
        strides, dilation = [1, *spec.strides, 1], spec.dilation
        wide = tf.cast(image, tf.float64)
        y = tf.nn.depthwise_conv2d(wide, weights, strides, spec.padding.upper(), None, dilation)
    expected = tape.gradient(y, weights, tf.cast(gradient, tf.float64))
    return spec, image, gradient, expected.numpy()


def error(found, expected):
    difference = tf.cast(found, tf.float64).numpy() - expected
    return np.linalg.norm(difference) / np.linalg.norm(expected)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("case", CASES)
def test_awkward_cases(case, dtype):
    x, w, arguments = CASES[case]
    spec, image, gradient, expected = operands(x, w, arguments, dtype)
    assert KERNEL.unsupported(spec) is None
    found = KERNEL.fn(spec, image, gradient, tf.constant(w))
    assert found.dtype == dtype and error(found, expected) < TOLERANCES[dtype]


def test_a_batch_of_any_size_and_none():
    x, w, arguments = CASES["a stride"]
    spec, image, gradient, expected = operands(x, w, arguments, "float32")

    @tf.function(input_signature=[tf.TensorSpec([None, *t.shape[1:]]) for t in (image, gradient)])
    def run(image, gradient):
        return KERNEL.fn(spec, image, gradient, tf.constant(w))

    assert error(run(image, gradient), expected) < 1e-5
    assert not run(image[:0], gradient[:0]).numpy().any()


def test_a_call_without_samples_and_one_with_two_dilations_are_refused():
    empty = convolution_spec("depthwise_conv2d", (0, 4, 4, 2), (3, 3, 2, 1), "float32")
    uneven = convolution_spec(
        "depthwise_conv2d", (1, 9, 9, 2), (3, 3, 2, 1), "float32", dilation_rate=(1, 2)
    )
    for spec in (empty, uneven):
        assert KERNEL.unsupported(spec.along("weight_gradient")).cause
