"""What is traced for replicas without data: right shapes and gradients of zero for no samples."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early
from tensorflow.python.ops import gen_nn_ops

import tfaccel
from tfaccel.compat import no_data
from tfaccel.compat.empty_batch import filled
from tfaccel.compat.no_data import mended

layers = keras.layers


class OfOps(layers.Layer):
    """A user's layer without one of Keras's inside."""

    def __init__(self):
        super().__init__()
        self.filters = self.add_weight(shape=(3, 3, 4, 4))

    def call(self, inputs):
        return tf.nn.conv2d(keras.ops.conv(inputs, self.filters), self.filters, 1, "SAME")


def not_a_number_at_zero(x):
    return tf.math.log(tf.abs(x))


LAYERS = {
    "conv1d": lambda: layers.Conv1D(5, 3, padding="causal", activation="relu"),
    "conv2d": lambda: layers.Conv2D(5, 3, activation="relu"),
    "conv2d without bias": lambda: layers.Conv2D(5, 3, strides=2, use_bias=False),
    "conv2d with a function": lambda: layers.Conv2D(5, 3, activation=not_a_number_at_zero),
    "conv2d with an operation": lambda: layers.Conv2D(5, 3, activation=keras.ops.reciprocal),
    "conv2d in groups": lambda: layers.Conv2D(6, 3, groups=2),
    "conv3d": lambda: layers.Conv3D(5, 2),
    "depthwise 1d": lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
    "depthwise 2d": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, activation="relu"),
    "separable 2d": lambda: layers.SeparableConv2D(5, 3),
    "transposed 2d": lambda: layers.Conv2DTranspose(5, 3, strides=2),
    "max 1d": lambda: layers.MaxPooling1D(2),
    "max 2d": lambda: layers.MaxPooling2D(2),
    "max 3d": lambda: layers.MaxPooling3D(2),
    "average 2d": lambda: layers.AveragePooling2D(2),
    "recurrent": lambda: layers.ConvLSTM1D(3, 3),
    "each frame": lambda: layers.TimeDistributed(layers.Conv2D(5, 3)),
    "ops": OfOps,
}
SHAPES = {"1d": (6, 4), "3d": (4, 4, 4, 4), "recurrent": (2, 6, 4), "each frame": (2, 6, 6, 4)}


def model_of(name):
    keras.utils.set_random_seed(1)
    shape = next((s for ending, s in SHAPES.items() if name.endswith(ending)), (6, 6, 4))
    # Products around it, so that gradients go through the layer.
    body = [layers.Dense(4, use_bias=False), LAYERS[name](), layers.Dense(2, use_bias=False)]
    return keras.Sequential([keras.Input(shape), *body])


def step_of(model):
    """Results and gradients, traced once for batches of any size."""

    @tf.function(input_signature=[tf.TensorSpec(model.input_shape)], autograph=False)
    def step(x):
        with tf.GradientTape() as tape:
            y = model(x, training=True)
            loss = tf.reduce_sum(y**2)
        return y, tape.gradient(loss, model.trainable_variables)

    return step


@pytest.mark.parametrize("name", LAYERS)
def test_no_samples_make_no_results_and_no_gradients(name):
    model = model_of(name)
    x = np.random.default_rng(2).normal(size=(3, *model.input_shape[1:])).astype("float32")
    expected, gradients = step_of(model)(x)
    step = step_of(model)
    with mended(on_cpu=True):
        step.get_concrete_function()
    made, found = step(x[:0])
    assert made.shape == (0, *expected.shape[1:])
    for gradient, expected_gradient in zip(found, gradients, strict=True):
        assert gradient.shape == expected_gradient.shape
        assert not np.any(gradient), "a batch without samples has no gradient"
    # And with samples it is what it is.
    made, found = step(x)
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
    for gradient, expected_gradient in zip(found, gradients, strict=True):
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_derivatives_of_derivatives():
    w, x = tf.ones((3, 3, 2, 4)), tf.random.normal((2, 5, 5, 2), seed=1)

    def second(convolution):
        @tf.function(input_signature=[tf.TensorSpec((None, 5, 5, 2))], autograph=False)
        def run(x):
            with tf.GradientTape() as outer:
                outer.watch(x)
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    y = tf.reduce_sum(convolution(x) ** 3)
                derivative = inner.gradient(y, x)
            return outer.gradient(derivative, x)

        return run

    def plain(x):
        return tf.nn.conv2d(x, w, 1, "SAME")

    run = second(lambda x: filled(plain, x))
    assert run.get_concrete_function().output_shapes.as_list() == [None, 5, 5, 2]
    np.testing.assert_allclose(run(x), second(plain)(x), rtol=1e-4, atol=1e-4)
    assert run(x[:0]).shape == (0, 5, 5, 2)


def test_with_samples_nothing_is_added():
    """Where the size is known while tracing; else a padding of nothing, which copies nothing."""

    def traced(size):
        function = tf.function(lambda x: filled(tf.nn.relu, x), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec((size, 3))).graph
        return {op.type for op in graph.get_operations()}

    assert "PadV2" not in traced(4)
    assert {"PadV2", "Slice"} <= traced(None)


def test_a_compiled_function():
    run = tf.function(
        lambda x: filled(tf.nn.conv2d, x, tf.ones((3, 3, 2, 4)), 1, "SAME"),
        input_signature=[tf.TensorSpec((None, 5, 5, 2))],
        jit_compile=True,
        autograph=False,
    )
    assert run(tf.ones((0, 5, 5, 2))).shape == (0, 5, 5, 4)
    assert run(tf.ones((2, 5, 5, 2))).shape == (2, 5, 5, 4)


def replaced():
    """What a block may replace."""
    calls = {layer: vars(layer).get("call") for layer in (layers.Conv2D, layers.DepthwiseConv2D)}
    names = ("conv2d", "conv3d", "max_pool", "depthwise_conv2d_native")
    return calls | {name: getattr(gen_nn_ops, name) for name in names}


@pytest.mark.parametrize("onednn", [True, False])
def test_nothing_but_what_is_wrong_is_replaced_and_all_is_put_back(monkeypatch, onednn):
    monkeypatch.setattr(no_data, "onednn_is_on", lambda: onednn)
    before = replaced()
    with pytest.raises(KeyError), mended(on_cpu=True):
        inside = replaced()
        raise KeyError
    assert replaced() == before
    changed = {name for name in before if inside[name] is not before[name]}
    # TensorFlow's own kernels are wrong for depthwise filters only.
    assert changed == (set(before) if onednn else {"depthwise_conv2d_native"})


def test_on_gpus_convolutions_are_left_alone(monkeypatch):
    monkeypatch.setattr(no_data, "onednn_is_on", lambda: True)
    before = replaced()
    with mended(on_cpu=False):
        assert replaced()["conv2d"] is before["conv2d"]


def test_a_training_under_a_plan_meets_an_empty_batch(rng):
    """On one device, where stock Keras fails under oneDNN; else that batch changes nothing."""
    x, y = rng.normal(size=(8, 9, 9, 3)).astype("float32"), rng.integers(0, 4, (8, 1))

    def trained(sizes, callbacks):
        model = conv_net()
        built_early(model)
        splits = np.cumsum(sizes)[:-1]
        batches = list(zip(np.split(x, splits), np.split(y, splits), strict=True))
        spec = (tf.TensorSpec((None, 9, 9, 3)), tf.TensorSpec((None, 1), tf.int64))
        data = tf.data.Dataset.from_generator(lambda: batches, output_signature=spec)
        model.fit(data, epochs=2, verbose=0, callbacks=callbacks)
        return model.get_weights()

    plan = tfaccel.AccelCallback(plan=["fused_activation", "fused_optimizer"], verbose=0)
    found = trained([4, 0, 4], [plan])
    assert plan.plan.names == ("fused_activation", "fused_optimizer")
    for a, e in zip(found, trained([4, 4], []), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5)


def conv_net():
    keras.utils.set_random_seed(1)
    parts = [
        layers.Conv2D(4, 3, activation="gelu"),
        layers.DepthwiseConv2D(3),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(4),
    ]
    model = keras.Sequential([keras.Input((9, 9, 3)), *parts])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model
