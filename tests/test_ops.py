"""tfaccel.ops as their users call them: against keras.ops, with gradients of two orders."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel import ops
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.kernels import (
    KERNELS,
    Candidate,
    Ranking,
    Store,
    convolution_spec,
    matmul_spec,
    product,
    reference,
)

WINNER = Speedup(2.0, 1.9, 2.1, 6)


def numbers(*shape, seed=0, dtype="float32"):
    return tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)


CONVOLUTIONS = [
    ("conv1d", (2, 7, 3), (3, 3, 4), {"strides": 2, "padding": "same"}),
    ("conv1d", (2, 7, 3), (2, 3, 4), {"dilation_rate": 2}),
    ("conv2d", (2, 6, 5, 4), (3, 2, 4, 5), {"strides": (2, 1), "padding": "SAME"}),
    ("conv2d", (2, 6, 5, 4), (3, 3, 2, 6), {"padding": "same", "groups": 2}),
    ("conv2d", (2, 6, 5, 4), (1, 1, 4, 5), {"strides": 3}),
    ("conv2d", (1, 1, 1, 4), (1, 1, 4, 5), {}),
    ("conv3d", (1, 4, 3, 5, 2), (2, 2, 3, 2, 3), {}),
    ("depthwise_conv2d", (2, 6, 5, 4), (3, 3, 4, 2), {"strides": 2, "padding": "same"}),
    ("depthwise_conv2d", (2, 6, 5, 4), (3, 3, 4, 1), {"dilation_rate": 2}),
]


def by_keras(name, x, w, arguments):
    arguments = {k: v.lower() if isinstance(v, str) else v for k, v in arguments.items()}
    arguments.pop("groups", None)
    call = keras.ops.depthwise_conv if name.startswith("depthwise") else keras.ops.conv
    return call(x, w, **arguments)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize(("name", "x", "w", "arguments"), CONVOLUTIONS)
def test_a_convolution_is_that_of_keras(name, x, w, arguments, data_format):
    x, w = numbers(*x), numbers(*w, seed=1)
    expected = by_keras(name, x, w, arguments | {"data_format": "channels_last"})
    bias = numbers(expected.shape[-1], seed=2)
    expected = tf.nn.relu(expected + bias)
    order = range(x.shape.rank)
    if data_format == "channels_first":
        x = tf.transpose(x, [0, order[-1], *order[1:-1]])
        expected = tf.transpose(expected, [0, order[-1], *order[1:-1]])
    found = getattr(ops, name)(
        x, w, **arguments, data_format=data_format, bias=bias, activation="relu"
    )
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dilation_rate", [1, 2])
def test_causal_padding_is_that_of_the_layer(dilation_rate):
    layer = keras.layers.Conv1D(4, 3, padding="causal", dilation_rate=dilation_rate)
    x = numbers(2, 9, 3)
    expected = layer(x)
    found = ops.conv1d(
        x, layer.kernel, padding="causal", dilation_rate=dilation_rate, bias=layer.bias
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (6, 4, 5)),
        ((3, 4), (2, 4, 5)),
        ((0, 3, 4), (4, 5)),
    ],
)
@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True)])
def test_a_matrix_product_is_that_of_numpy(a, b, transposed):
    a, b = numbers(*a), numbers(*b, seed=1)
    bias = numbers(b.shape[-1], seed=2)
    expected = np.tanh(a.numpy() @ b.numpy() + bias.numpy())
    a, b = (
        tf.linalg.matrix_transpose(t) if turn else t
        for t, turn in zip((a, b), transposed, strict=True)
    )
    found = ops.matmul(a, b, *transposed, bias=bias, activation="tanh")
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


# Gradients


def chosen(name):
    """The kernel called so wherever it serves, else TensorFlow's."""

    def choose(spec):
        for kernel in KERNELS:
            same = (kernel.op, kernel.direction, kernel.name) == (spec.op, spec.direction, name)
            if same and kernel.unsupported(spec) is None:
                return kernel
        return reference(spec.op, spec.direction)

    return choose


PRODUCTS = [
    ("tensorflow", "conv2d", (1, 4, 3, 2), (3, 2, 2, 1), {"strides": 2, "padding": "same"}),
    ("im2col", "conv2d", (1, 4, 3, 2), (3, 2, 2, 1), {"strides": 2, "padding": "same"}),
    ("shifted", "conv1d", (2, 6, 2), (3, 2, 1), {"dilation_rate": 2}),
    ("matmul_1x1", "conv2d", (1, 4, 4, 2), (1, 1, 2, 2), {"strides": 2}),
    ("split_groups", "conv2d", (1, 3, 3, 4), (2, 2, 2, 2), {"groups": 2}),
    ("flipped", "conv2d", (1, 3, 3, 2), (3, 3, 2, 1), {"padding": "same"}),
    ("xla", "conv2d", (1, 3, 3, 2), (3, 3, 2, 1), {"padding": "same"}),
    ("fused_offsets", "depthwise_conv2d", (1, 5, 5, 2), (3, 3, 2, 1), {"strides": 2}),
    ("tensorflow", "matmul", (2, 3, 4), (4, 2), {}),
    ("tensorflow", "matmul", (2, 1, 3, 4), (3, 4, 2), {}),
    ("xla", "matmul", (3, 4), (4, 2), {}),
]


def spec_of(op, x, w, arguments, dtype="float64"):
    if op == "matmul":
        return matmul_spec(x, w, dtype)
    return convolution_spec(op, x, w, dtype, **arguments)


@pytest.mark.parametrize(("name", "op", "x", "w", "arguments"), PRODUCTS)
def test_gradients_are_those_of_differences(name, op, x, w, arguments):
    """First order of a product, and first order of its gradients, hence second of it."""
    spec = spec_of(op, x, w, arguments)
    x, w = numbers(*x, dtype="float64"), numbers(*w, seed=1, dtype="float64")

    def weighed(tensors):
        """One number of them, in which each of their elements counts by another weight."""
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], 0)
        return tf.reduce_sum(tf.tanh(flat) * tf.cos(tf.range(tf.size(flat), dtype=flat.dtype)))

    def forward(x, w):
        return weighed([product(spec, x, w, chosen(name))])

    def slopes(x, w):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = forward(x, w)
        return weighed(tape.gradient(y, [x, w]))

    # The product itself, then its gradients.
    for function in (forward, slopes):
        run = tf.function(function, autograph=False)
        found, expected = tf.test.compute_gradient(run, [x, w], delta=1e-5)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# Wherever TensorFlow code runs


@pytest.mark.parametrize(
    ("wrapping", "dtype"),
    [
        *(("eager", dtype) for dtype in ("float16", "bfloat16", "float64")),
        *((wrapping, "float32") for wrapping in ("function", "xla", "distribute")),
        # AutoGraph takes seconds to rewrite all ops; below it rewrites a convolution.
        pytest.param("autograph", "float32", marks=pytest.mark.slow),
    ],
)
def test_it_runs_everywhere(wrapping, dtype):
    x, w = numbers(2, 6, 6, 2, dtype=dtype), numbers(3, 3, 2, 4, seed=1, dtype=dtype)
    v = numbers(4, 3, seed=2, dtype=dtype)

    def step(x, w, v):
        with tf.GradientTape() as tape:
            tape.watch([x, w, v])
            y = ops.conv2d(x, w, strides=2, padding="same", activation="relu")
            y = ops.depthwise_conv2d(y, tf.ones((2, 2, 4, 1), y.dtype))
            loss = tf.reduce_sum(ops.matmul(y, v) ** 2)
        return tape.gradient(loss, [x, w, v])

    def stock(x, w, v):
        with tf.GradientTape() as tape:
            tape.watch([x, w, v])
            y = tf.nn.relu(tf.nn.conv2d(x, w, 2, "SAME"))
            y = tf.nn.depthwise_conv2d(y, tf.ones((2, 2, 4, 1), y.dtype), [1] * 4, "VALID")
            loss = tf.reduce_sum(tf.tensordot(y, v, 1) ** 2)
        return tape.gradient(loss, [x, w, v])

    expected = stock(*(tf.cast(t, "float64") for t in (x, w, v)))
    run = {
        "eager": step,
        "function": tf.function(step, autograph=False),
        "autograph": tf.function(step),
        "xla": tf.function(step, jit_compile=True, autograph=False),
        "distribute": lambda *t: tf.distribute.OneDeviceStrategy("CPU:0").run(
            tf.function(step, autograph=False), t
        ),
    }[wrapping]
    bound = {"float16": 1e-2, "bfloat16": 8e-2}.get(dtype, 1e-5)
    for a, b in zip(run(x, w, v), expected, strict=True):
        assert a.dtype == dtype
        assert tfaccel.measure.numerics.relative_error(b, tf.cast(a, "float64")) < bound


def test_batch_and_image_may_be_of_any_size():
    w = numbers(3, 3, 2, 4)

    @tf.function(input_signature=[tf.TensorSpec((None, None, None, 2))])
    def derivative(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = ops.conv2d(x, w, strides=2, padding="same")
        assert y.shape.as_list() == [None, None, None, 4]
        return tape.gradient(y, x)

    for shape in ((2, 5, 6, 2), (1, 1, 1, 2), (0, 4, 4, 2)):
        assert derivative(numbers(*shape)).shape == shape


def test_the_measured_kernel_is_used(monkeypatch):
    used = []
    with registered("conv2d", "spy", lambda spec, x, w: used.append(spec) or 7 * x[..., :1]):
        x, w = numbers(2, 3, 3, 1), numbers(1, 1, 1, 1)
        assert not np.allclose(ops.conv2d(x, w), 7 * x)  # nothing was measured
        spec = convolution_spec("conv2d", x.shape, w.shape, "float32")
        names = [k.name for k in ops.kernels("conv2d", "forward")]
        verdicts = {"tensorflow": Outcome.BASELINE, "spy": Outcome.FASTER}
        rows = (
            Candidate(n, verdicts.get(n, Outcome.REFUSED), speedup=WINNER if n == "spy" else None)
            for n in names
        )
        Store.at().add(Ranking(spec, tuple(rows)))
        np.testing.assert_allclose(ops.conv2d(x, w), 7 * x)
        unknown = tf.function(
            lambda x: ops.conv2d(x, w), input_signature=[tf.TensorSpec((None, 3, 3, 1))]
        )
        np.testing.assert_allclose(unknown(x), 7 * x)
        assert used[-1].x == (None, 3, 3, 1)
        assert not np.allclose(ops.conv2d(x[:, :2], w), 7 * x[:, :2])  # another shape


@contextlib.contextmanager
def registered(op, name, fn, **arguments):
    ops.register_kernel(op, name=name, **arguments)(fn)
    try:
        yield
    finally:
        ops.unregister_kernel(op, name, arguments.get("direction", "forward"))


# Bad input


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strides": 0}, ValueError, "`strides` must be a positive whole number. Received: 0"),
        ({"strides": (1, 2, 3)}, ValueError, "`strides` must be an int or 2 of them"),
        ({"dilation_rate": 1.5}, ValueError, "`dilation_rate` must be a positive whole number"),
        ({"padding": "causal"}, ValueError, "\"causal\" for conv1d only.*Received: 'causal'"),
        ({"padding": 3}, ValueError, "`padding` must be"),
        ({"groups": 3}, ValueError, "must be channels / groups.*4 channels, 3 groups"),
        ({"data_format": "NHWC"}, ValueError, "`data_format` must be"),
        ({"filters": np.ones((3, 3, 4))}, ValueError, "`filters` must have 4 dimensions"),
        ({"filters": np.ones((9, 3, 4, 2))}, ValueError, "must fit into `x`.*9 pixels.*on 5"),
        ({"x": np.ones((1, 5, 5, 4), int)}, TypeError, "`x` and `filters` must have the same"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    usual = {"x": np.ones((1, 5, 5, 4), "float32"), "filters": np.ones((3, 3, 4, 2), "float32")}
    if "filters" in arguments:
        arguments["filters"] = arguments["filters"].astype("float32")
    with pytest.raises(error, match=message):
        ops.conv2d(**usual | arguments)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ((4,), (4, 2), "must be matrices"),
        ((3, 4), (3, 4), "`a` must have as many columns as `b` has rows"),
        ((2, 3, 4), (3, 4, 5), "batch dimensions of `a` and `b` must broadcast"),
    ],
)
def test_matrices_that_do_not_fit(a, b, message):
    with pytest.raises(ValueError, match=message):
        ops.matmul(numbers(*a), numbers(*b))


@pytest.mark.parametrize(
    ("op", "name", "fn", "error", "message"),
    [
        ("conv4d", "mine", len, ValueError, "`op` must be one of conv1d"),
        ("conv2d", "my kernel", len, ValueError, "`name` must be an identifier"),
        ("conv2d", "im2col", len, ValueError, "`name` must be new"),
        ("conv2d", "mine", lambda x, w: x, TypeError, r"takes \(spec, x, w\)"),
        ("conv2d", "mine", 3, TypeError, "Received: 3"),
    ],
)
def test_a_kernel_that_can_not_be_registered(op, name, fn, error, message):
    before = ops.kernels("conv2d")
    with pytest.raises(error, match=message):
        ops.register_kernel(op, name=name)(fn)
    assert ops.kernels("conv2d") == before


def test_kernels_are_listed_and_taken_back():
    with registered("matmul", "mine", lambda spec, x, dy, shape: x, direction="weight_gradient"):
        assert ops.kernels("matmul", "weight_gradient")[-1].name == "mine"
        assert "mine" not in [k.name for k in ops.kernels("matmul", "forward")]
        assert "mine" in [k.name for k in ops.kernels("matmul")]
    assert "mine" not in [k.name for k in ops.kernels("matmul")]
    with pytest.raises(ValueError, match="no forward kernel 'mine'"):
        ops.unregister_kernel("matmul", "mine")
    with pytest.raises(ValueError, match="`direction` must be one of forward"):
        ops.kernels("matmul", "backward")
