import contextlib
import dataclasses
import threading

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import MixedPrecision
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.snapshot import Snapshot
from tfaccel.system.device import Device

layers = keras.layers
ZEN5 = Device("CPU", "EPYC", 2, frozenset({"avx2", "avx512_bf16"}))
ZEN3 = Device("CPU", "EPYC", 2, frozenset({"avx2"}))


def compiled(model, **arguments):
    model.compile(**{"optimizer": "sgd", "loss": "mse", **arguments})
    return model


def workload_of(model, x, y, device=ZEN5):
    model.fit(x, y, batch_size=len(x), verbose=0)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(len(x))
    return Workload(model, (next(iter(data)),), data.element_spec, device=device)


@pytest.fixture(scope="module")
def dense():
    rng = np.random.default_rng(4)
    model = compiled(
        keras.Sequential(
            [
                keras.Input((6,)),
                layers.Dense(8, activation="relu"),
                layers.Dense(3, activation="softmax"),
            ]
        ),
        loss="sparse_categorical_crossentropy",
    )
    x, y = rng.normal(size=(16, 6)).astype("float32"), rng.integers(0, 3, 16)
    return workload_of(model, x, y)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        (ZEN5, "bfloat16"),
        (dataclasses.replace(ZEN3, flags=frozenset({"amx_bf16"})), "bfloat16"),
        (ZEN3, None),
        (Device("GPU", "V100", compute_capability=(7, 0)), "float16"),
        (Device("GPU", "A100", compute_capability=(8, 0)), "bfloat16"),
        (Device("GPU", "P100", compute_capability=(6, 0)), None),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_auto_takes_what_the_chip_is_good_at(dense, device, dtype):
    workload = dataclasses.replace(dense, device=device)
    unsupported = MixedPrecision().unsupported(workload)
    if dtype is None:
        assert unsupported.kind is Refusal.DEVICE and device.name in unsupported.cause
        assert MixedPrecision("bfloat16").unsupported(workload) is None  # asked for by name
    else:
        assert unsupported is None
        assert MixedPrecision().compute_dtype(workload) == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_what_computes_in_which_dtype(rng, dtype):
    x = inputs = keras.Input((6, 4))
    x = layers.Conv1D(4, 3, name="conv")(x)
    x = layers.BatchNormalization(name="norm")(x)
    x = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.Softmax((1, 2), name="along_two_axes")(x)
    x = layers.Dense(4, activation="softmax", name="gate")(x)
    x = layers.SpatialDropout1D(0.2, name="noise")(x)
    x = layers.Flatten(name="flat")(x)
    x = layers.Dense(4, name="kept_by_name")(x)
    model = compiled(keras.Model(inputs, layers.Dense(1, name="head")(x)))
    workload = Workload(model, device=ZEN5)
    item = MixedPrecision(dtype, keep=("kept_by_name",))
    with item.applied(StepContext(workload)):
        found = {layer.name: layer.compute_dtype for layer in model.layers}
        softmax = [x for x in workload.layers if isinstance(x, layers.Softmax)]
        # TensorFlow's op has float32 inside, the sums that Keras makes along two axes have not.
        assert [layer.compute_dtype for layer in softmax] == [dtype, "float32"]
        assert {v.dtype for v in model.variables if "seed" not in v.name} == {"float32"}
    in_float32 = {"along_two_axes", "gate", "noise", "kept_by_name", "head"}
    assert {name for name, kind in found.items() if kind == "float32"} == in_float32
    assert set(found.values()) == {"float32", dtype}


def test_the_products_are_16_bit_and_the_loss_is_not(dense):
    graphs = []
    step = build_step(dense, tfaccel.Plan((MixedPrecision("bfloat16"),)), on_trace=graphs.append)
    logs = step(iter(tf.data.Dataset.from_tensors(dense.batches[0]).repeat()))
    products = [op for op in graphs[0].get_operations() if op.type == "MatMul"]
    forward = [op.get_attr("T") for op in products if "gradient" not in op.name]
    assert tf.bfloat16 in forward
    assert tf.float32 in forward  # the head
    assert logs["loss"].dtype == tf.float32


def test_the_last_layer_of_a_subclassed_model_stays_float32():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.body, self.head = layers.Dense(3), layers.Dense(1)

        def call(self, inputs):
            return self.head(self.body(inputs))

    model = compiled(Subclassed())
    with MixedPrecision("bfloat16").applied(StepContext(Workload(model, device=ZEN5))):
        assert (model.body.compute_dtype, model.head.compute_dtype) == ("bfloat16", "float32")


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5])
def test_dropout_has_the_mask_of_the_untouched_step(rate):
    layer = layers.Dropout(rate, seed=7)
    model = compiled(keras.Sequential([keras.Input((50, 40)), layer, layers.Dense(1)]))
    x = np.ones((4, 50, 40), "float32")
    state = layer.seed_generator.state
    start = state.numpy()
    reference = layer(x, training=True).numpy()
    state.assign(start)
    with MixedPrecision("bfloat16").applied(StepContext(Workload(model, device=ZEN5))):
        found = layer(x, training=True)
    assert found.dtype == tf.bfloat16
    np.testing.assert_array_equal(found.numpy() == 0, reference == 0)
    np.testing.assert_allclose(tf.cast(found, tf.float32), reference, rtol=2.0**-8)


@pytest.mark.parametrize(("dtype", "name"), [("mixed_bfloat16", "mine"), ("float16", "half")])
def test_a_precision_that_the_user_chose_is_refused(dtype, name):
    chosen = layers.Dense(2, dtype=dtype, name=name)
    model = compiled(keras.Sequential([keras.Input((3,)), chosen, layers.Dense(1)]))
    unsupported = MixedPrecision("bfloat16").unsupported(Workload(model, device=ZEN5))
    assert unsupported.kind is Refusal.SETTING
    assert repr(name) in unsupported.cause and repr(dtype) in unsupported.cause


def test_a_float64_model_is_refused():
    keras.config.set_dtype_policy("float64")
    model = compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]))
    unsupported = MixedPrecision("bfloat16").unsupported(Workload(model, device=ZEN5))
    assert unsupported.kind is Refusal.DTYPE


def test_a_loss_scale_of_the_user_s_own_is_refused():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    model = compiled(
        keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]), optimizer=optimizer
    )
    workload = Workload(model, device=ZEN5)
    assert MixedPrecision("float16").unsupported(workload).kind is Refusal.SETTING
    assert MixedPrecision("bfloat16").unsupported(workload) is None


@pytest.mark.parametrize("dtype", ["int8", "", None, "float32"])
def test_a_wrong_dtype_is_told_so(dtype):
    with pytest.raises(ValueError, match="`dtype` must be"):
        MixedPrecision(dtype)


def big_loss_workload(rng, factor, optimizer="sgd"):
    """A model whose float16 gradients overflow at a loss scale of 2^15."""
    model = compiled(
        keras.Sequential([keras.Input((6,)), layers.Dense(8), layers.Dense(1)]), optimizer=optimizer
    )
    x = (factor * rng.normal(size=(16, 6))).astype("float32")
    return workload_of(model, x, x.sum(axis=1, keepdims=True))


def run(workload, count):
    """Steps under float16; the scale after each, and the optimizer's iterations."""
    scales = []
    item = MixedPrecision("float16")
    step = build_step(workload, tfaccel.Plan((item,)))
    feed = iter(tf.data.Dataset.from_tensors(workload.batches[0]).repeat())
    for _ in range(count):
        step(feed)
        scale = step.scratch["mixed_precision"]
        scales.append((float(scale.value.numpy()), int(scale.good_steps.numpy())))
    return scales


def test_an_overflow_halves_the_scale_and_skips_the_step(rng):
    workload = big_loss_workload(rng, 1000.0)
    before = [v.numpy() for v in workload.model.trainable_variables]
    start = int(workload.model.optimizer.iterations.numpy())
    scales = run(workload, 3)
    assert scales == [(2.0**14, 0), (2.0**13, 0), (2.0**12, 0)]
    assert int(workload.model.optimizer.iterations.numpy()) == start
    for a, b in zip(before, workload.model.trainable_variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())


def test_good_steps_count_towards_a_larger_scale(rng, monkeypatch):
    from tfaccel.passes.precision import loss_scale

    monkeypatch.setattr(loss_scale, "_GROWTH_STEPS", 3)
    scales = run(big_loss_workload(rng, 0.01), 4)
    assert scales == [(2.0**15, 1), (2.0**15, 2), (2.0**16, 0), (2.0**16, 1)]


def test_the_scale_enters_nothing_of_the_user_s(rng):
    workload = big_loss_workload(rng, 0.01)
    model = workload.model
    names = [v.path for v in [*model.variables, *model.optimizer.variables]]
    run(workload, 2)
    assert [v.path for v in [*model.variables, *model.optimizer.variables]] == names
    assert type(model.optimizer) is keras.optimizers.SGD


@pytest.mark.parametrize(("dtype", "optimizer"), [("bfloat16", "sgd"), ("float16", "adam")])
def test_gradients_and_updates_are_the_untouched_step_s_to_rounding(rng, dtype, optimizer):
    workload = big_loss_workload(rng, 0.1, optimizer)
    probe = StepRecorder(workload, Snapshot.of(workload))
    reference = probe.observe(tfaccel.Plan())
    plan = tfaccel.Plan((MixedPrecision(dtype),))
    drift = tfaccel.measure.numerics.compare(reference, probe.observe(plan, reference))
    assert drift.violation(tfaccel.measure.numerics.TOLERANCES[dtype]) is None
    assert drift.gradient > 1e-6  # the pass did something
    assert drift.update == 0.0


def test_float16_needs_a_step_that_scales_its_loss(rng):
    class Unscaled(keras.Sequential):
        def train_step(self, data):
            x, y = data
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            gradients = tape.gradient(loss, self.trainable_weights)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return {"loss": loss}

    model = compiled(Unscaled([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]))
    x = rng.normal(size=(8, 3)).astype("float32")
    with pytest.warns(RuntimeWarning, match=r"without optimizer.scale_loss"):
        model.fit(
            x, x[:, :1], epochs=2, verbose=0,
            callbacks=[tfaccel.AccelCallback([MixedPrecision("float16")], verbose=0)],
        )  # fmt: skip


def loss_of(y, upstream):
    return tf.reduce_sum(tf.cast(y, upstream.dtype) * upstream)


def under_the_pass(layer, function, *args, head=None):
    """A function of tensors, traced while the pass is active on a model of this layer."""
    model = keras.Model()
    model.parts = [layer, head or layers.Dense(1)]  # the last one stays in float32
    with MixedPrecision("bfloat16").applied(StepContext(Workload(model, device=ZEN5))):
        return tf.function(function, autograph=False)(*args)


def off(found, exact):
    """The error of all tensors together, as a share of their norm."""
    found = np.concatenate([np.ravel(tf.cast(x, tf.float64)) for x in found])
    exact = np.concatenate([np.ravel(tf.cast(x, tf.float64)) for x in exact])
    return np.linalg.norm(found - exact) / np.linalg.norm(exact)


class BroadcastBias(keras.layers.Layer):
    """A layer of the user's own, whose bias is added by `+`."""

    def build(self, shape):
        self.bias = self.add_weight(shape=shape[-1:], name="bias")

    def call(self, inputs):
        return inputs + self.bias


class GivenBias(BroadcastBias):
    """One that calls TensorFlow's function by arguments' names."""

    def call(self, inputs):
        bias = keras.ops.convert_to_tensor(self.bias)
        return tf.nn.bias_add(bias=tf.cast(bias, inputs.dtype), value=inputs)


class FirstBias(keras.layers.Layer):
    """A bias as Keras adds it to convolutions with the channels first."""

    data_format = "channels_first"

    def build(self, shape):
        self.bias = self.add_weight(shape=shape[1:2], name="bias")

    def call(self, inputs):
        return keras.ops.add(inputs, keras.ops.reshape(self.bias, (1, -1, 1, 1)))


BIASED = {
    "dense": (lambda: layers.Dense(3), (64, 64, 2)),
    "einsum_dense": (
        lambda: layers.EinsumDense("abc,cd->abd", (64, 3), bias_axes="d"),
        (64, 64, 2),
    ),
    "einsum_heads": (
        lambda: layers.EinsumDense("abc,cde->abde", (64, 2, 3), bias_axes="de"),
        (64, 64, 2),
    ),
    "conv1d": (lambda: layers.Conv1D(3, 3, padding="same"), (16, 256, 2)),
    "conv2d": (lambda: layers.Conv2D(3, 3, padding="same"), (16, 16, 16, 2)),
    "channels_first": (FirstBias, (512, 3, 4, 4)),
    "conv3d": (lambda: layers.Conv3D(3, 2, padding="same"), (8, 8, 8, 8, 2)),
    "conv1d_transpose": (lambda: layers.Conv1DTranspose(3, 2, strides=2), (16, 128, 2)),
    "conv2d_transpose": (lambda: layers.Conv2DTranspose(3, 2, strides=2), (16, 8, 8, 2)),
    "conv3d_transpose": (lambda: layers.Conv3DTranspose(3, 2, strides=2), (8, 4, 4, 4, 2)),
    "depthwise1d": (lambda: layers.DepthwiseConv1D(3, padding="same"), (16, 256, 2)),
    "depthwise2d": (lambda: layers.DepthwiseConv2D(3, padding="same"), (16, 16, 16, 2)),
    "separable1d": (lambda: layers.SeparableConv1D(3, 3, padding="same"), (16, 256, 2)),
    "separable2d": (lambda: layers.SeparableConv2D(3, 3, padding="same"), (16, 16, 16, 2)),
    "own": (BroadcastBias, (64, 64, 3)),
    "own_named": (GivenBias, (64, 64, 3)),
}


@pytest.mark.parametrize("kind", BIASED)
def test_a_bias_has_the_sum_of_what_comes_back(rng, kind):
    """TensorFlow adds BiasAdd's gradient up in bfloat16: half of it is missing here."""
    make, shape = BIASED[kind]
    layer = make()
    y = layer(tf.zeros(shape))
    upstream = tf.constant(0.5 + rng.normal(size=y.shape), tf.bfloat16)

    def gradient(x):
        with tf.GradientTape() as tape:
            loss = loss_of(layer(x), upstream)
        return tape.gradient(loss, layer.bias.value)

    found = under_the_pass(layer, gradient, tf.constant(rng.normal(size=shape), tf.bfloat16))
    channel = 1 if getattr(layer, "data_format", None) == "channels_first" else None
    kept = [channel] if channel else range(y.shape.rank - layer.bias.shape.rank, y.shape.rank)
    axes = tuple(axis for axis in range(y.shape.rank) if axis not in kept)
    assert off([found], [np.asarray(upstream, "float64").sum(axes)]) < 2.0**-8


TWINS = {
    "simple_rnn": lambda dtype: layers.SimpleRNN(3, dtype=dtype),
    "lstm": lambda dtype: layers.LSTM(3, dtype=dtype),
    "gru": lambda dtype: layers.GRU(3, dtype=dtype),
    "bidirectional": lambda dtype: layers.Bidirectional(layers.GRU(3, dtype=dtype), dtype=dtype),
    "conv_lstm": lambda dtype: keras.Sequential(
        [
            layers.Reshape((-1, 4, 4), dtype=dtype),
            layers.ConvLSTM1D(2, 2, dtype=dtype),
        ]
    ),
    "dense_tanh": lambda dtype: layers.Dense(3, activation="tanh", dtype=dtype),
}


def twins(make, shape, rng):
    """A layer, and the same in float64 with weights rounded to bfloat16."""
    layer, exact = make("float32"), make("float64")
    layer.build(shape)
    exact.build(shape)
    for one, other in zip(layer.trainable_weights, exact.trainable_weights, strict=True):
        value = tf.constant(0.5 * rng.normal(size=one.shape), tf.bfloat16)
        one.assign(tf.cast(value, tf.float32))
        other.assign(tf.cast(value, tf.float64))
    return layer, exact


def biases(layer):
    return [w.value for w in layer.trainable_weights if w.name == "bias"]


@pytest.mark.parametrize("kind", TWINS)
def test_biases_inside_layers_have_float64_s_gradients(rng, kind):
    shape = (2048, 4, 16)
    layer, exact = twins(TWINS[kind], shape, rng)
    x = tf.constant(rng.normal(size=shape), tf.bfloat16)
    upstream = tf.constant(1.0 + rng.normal(size=exact(x).shape), tf.bfloat16)

    def gradients(layer, dtype):
        with tf.GradientTape() as tape:
            loss = loss_of(layer(tf.cast(x, dtype)), tf.cast(upstream, dtype))
        return tape.gradient(loss, biases(layer))

    found = under_the_pass(layer, lambda: gradients(layer, "float32"))
    assert off(found, gradients(exact, "float64")) < 0.03


@pytest.mark.parametrize("kind", ["dense_tanh", pytest.param("gru", marks=pytest.mark.slow)])
def test_second_derivatives_through_a_bias(rng, kind):
    shape = (512, 4, 3)
    layer, exact = twins(TWINS[kind], shape, rng)
    x = tf.constant(rng.normal(size=shape), tf.bfloat16)

    def gradients(layer, dtype):
        inputs = tf.cast(x, dtype)
        with tf.GradientTape() as outer:
            with tf.GradientTape() as inner:
                y = tf.cast(layer(inputs), "float64")
                loss = tf.reduce_mean(tf.square(1.0 + y))
            first = inner.gradient(loss, biases(layer))
            penalty = tf.add_n([tf.reduce_sum(tf.square(tf.cast(g, "float64"))) for g in first])
        return outer.gradient(penalty, [w.value for w in layer.trainable_weights])

    found = under_the_pass(layer, lambda: gradients(layer, "float32"))
    assert off(found, gradients(exact, "float64")) < 0.05


SUMS = {
    "cumsum": lambda x: keras.ops.cumsum(x, axis=0),
    "segment_sum": lambda x: keras.ops.segment_sum(x, tf.zeros(len(x), "int32"), 1),
    "sorted_segments": lambda x: keras.ops.segment_sum(x, tf.zeros(len(x), "int32"), sorted=True),
    "average_pool": lambda x: keras.ops.average_pool(tf.reshape(x, (1, 64, 64, 2)), 64),
    "average_pool1d": lambda x: keras.ops.average_pool(tf.reshape(x, (1, 4096, 2)), 4096),
    "mean": lambda x: keras.ops.mean(x, axis=0),
    "softmax": lambda x: keras.ops.softmax(tf.transpose(x)),
}


class Summing(keras.layers.Layer):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def call(self, inputs):
        return self.function(inputs)


@pytest.mark.parametrize("kind", SUMS)
def test_sums_of_16_bits_lose_one_rounding(rng, kind):
    x = tf.constant(0.5 + rng.normal(size=(4096, 2)), tf.bfloat16)
    # TensorFlow has no pooling in float64.
    exact = SUMS[kind](tf.cast(x, tf.float32))
    layer = Summing(SUMS[kind])
    found = under_the_pass(layer, lambda: layer(x))
    assert found.dtype == tf.bfloat16
    assert off([found], [exact]) < 2.0**-8


@pytest.mark.parametrize("fails", [False, True])
def test_tensorflow_s_functions_are_back_and_never_others(rng, fails):
    """A training in another thread, and the next one in this thread, are what they were."""
    plain = tf.nn.bias_add
    upstream = tf.constant(0.5 + rng.normal(size=(4096, 2)), tf.bfloat16)
    expected = tf.raw_ops.BiasAddGrad(out_backprop=upstream).numpy()
    assert off([expected], [np.asarray(upstream, "float64").sum(0)]) > 0.1

    def gradient():
        bias = tf.zeros(2, tf.bfloat16)
        with tf.GradientTape() as tape:
            tape.watch(bias)
            y = tf.nn.bias_add(upstream, bias)
        return tape.gradient(y, bias, upstream)

    found = []

    def elsewhere():
        found.extend([gradient(), tf.function(gradient, autograph=False)()])

    model = compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]))
    active = MixedPrecision("bfloat16").applied(StepContext(Workload(model, device=ZEN5)))
    with contextlib.suppress(ZeroDivisionError), active:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        inside = gradient()
        if fails:
            raise ZeroDivisionError
    assert tf.nn.bias_add is plain
    for other in (*found, gradient()):
        np.testing.assert_array_equal(other, expected)
    assert off([inside], [np.asarray(upstream, "float64").sum(0)]) < 2.0**-8


def test_float16_and_gpus_keep_tensorflow_s_sums():
    plain = tf.nn.bias_add
    model = compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2), layers.Dense(1)]))
    gpu = Device("GPU", "A100", compute_capability=(8, 0))
    for item, device in ((MixedPrecision("float16"), ZEN5), (MixedPrecision("bfloat16"), gpu)):
        with item.applied(StepContext(Workload(model, device=device))):
            assert tf.nn.bias_add is plain


def small_net():
    """Layers that every other pass serves, whose biases have thousands of rows."""
    x = inputs = keras.Input((1024, 4))
    x = layers.Dense(6, activation="gelu")(x)
    x = layers.LayerNormalization()(x)
    x = layers.MultiHeadAttention(2, 3)(x[:, :64], x[:, :64])
    x = layers.Conv1D(6, 3, padding="same", activation="relu")(x)
    x = layers.LSTM(4, return_sequences=True)(x)
    return keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))


@pytest.fixture(scope="module")
def seen():
    """A probe of the small net, and what it saw of the untouched step."""
    rng = np.random.default_rng(4)
    keras.utils.set_random_seed(3)
    x = rng.normal(size=(32, 1024, 4)).astype("float32")
    workload = workload_of(compiled(small_net()), x, 5.0 + x[:, :1, 0])
    probe = StepRecorder(workload, Snapshot.of(workload))
    return probe, probe.observe(tfaccel.Plan())


@pytest.mark.parametrize(
    "names",
    [
        # The first pass of a plan is the outermost.
        ["mixed_precision", "fused_activation", "fused_norm", "fused_attention", "fused_rnn"],
        ["fused_rnn", "layout", "fused_attention", "fused_norm", "mixed_precision"],
        ["kernels", "mixed_precision", "recompute"],
        # XLA takes long to compile the recurrent layer.
        pytest.param(["mixed_precision", "xla"], marks=pytest.mark.slow),
    ],
    ids="+".join,
)
def test_gradients_of_biases_beside_other_passes(seen, names):
    probe, reference = seen
    reduced = MixedPrecision("bfloat16")
    plan = tfaccel.core.plan.as_plan([reduced if n == reduced.name else n for n in names])
    found = probe.observe(plan, reference)
    assert tfaccel.measure.numerics.compare(reference, found).gradient < 0.03


ATTENTION = {
    "multi_head": lambda dtype: layers.MultiHeadAttention(2, 4, dtype=dtype),
    # Layers that drop probabilities have a softmax layer of their own.
    "multi_head_softmax": lambda dtype: layers.MultiHeadAttention(2, 4, dropout=1e-9, dtype=dtype),
    "grouped": lambda dtype: layers.GroupQueryAttention(4, 4, 2, dropout=1e-9, dtype=dtype),
    "attention": lambda dtype: layers.Attention(use_scale=True, dtype=dtype),
    "additive": lambda dtype: layers.AdditiveAttention(dtype=dtype),
}


@pytest.mark.parametrize("kind", ATTENTION)
@pytest.mark.parametrize("masked", [False, True])
def test_attention_is_float64_s_to_rounding(rng, kind, masked):
    shape = (64, 16, 8)
    x = tf.constant(rng.normal(size=shape), tf.bfloat16)
    seen = tf.constant(rng.random(shape[:2]) < 0.7) | (tf.range(16) == 0)
    layer, exact = ATTENTION[kind]("float32"), ATTENTION[kind]("float64")
    single = kind in ("attention", "additive")

    def run(layer, dtype):
        inputs = tf.cast(x, dtype)
        masks = {"mask": [seen, seen]} if single else {"query_mask": seen, "value_mask": seen}
        arguments = ([inputs, inputs],) if single else (inputs, inputs)
        # Such dropout drops nothing, and draws.
        return layer(*arguments, **(masks if masked else {}), training=not single)

    run(layer, "float32"), run(exact, "float64")
    for one, other in zip(layer.trainable_weights, exact.trainable_weights, strict=True):
        value = tf.constant(0.5 * rng.normal(size=one.shape), tf.bfloat16)
        one.assign(tf.cast(value, tf.float32))
        other.assign(tf.cast(value, tf.float64))

    def results(layer, dtype):
        with tf.GradientTape() as tape:
            y = run(layer, dtype)
            loss = tf.reduce_sum(tf.square(1.0 + tf.cast(y, dtype)))
        return y, tape.gradient(loss, [w.value for w in layer.trainable_weights])

    y, gradients = under_the_pass(layer, lambda: results(layer, "float32"))
    wanted, wanted_gradients = results(exact, "float64")
    assert y.dtype == tf.bfloat16
    # A few roundings of 2^-9, each twice where products are Eigen's.
    assert off([y], [wanted]) < 0.02
    assert off(gradients, wanted_gradients) < 0.02


def test_scores_are_never_wider_than_16_bits(rng):
    """Of an attention layer with a softmax layer inside, where oneDNN has the kernel for it."""
    layer = layers.MultiHeadAttention(2, 4, dropout=0.1)
    layer.build((4, 16, 8), (4, 16, 8))
    x = tf.constant(rng.normal(size=(4, 16, 8)), tf.bfloat16)
    softmax = []

    def run():
        y = layer(x, x, training=True)
        operations = tf.compat.v1.get_default_graph().get_operations()
        softmax.extend(op.inputs[0].dtype for op in operations if op.type == "Softmax")
        return y

    under_the_pass(layer, run)
    assert softmax == [tf.bfloat16 if onednn_is_on() else tf.float32]
