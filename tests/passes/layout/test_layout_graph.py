"""Layout: where transposes remain, other passes and XLA beside it, what it refuses."""

import collections
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from laid_out_models import (
    CHAINS,
    CPU,
    FIRST,
    SHAPE,
    Residual,
    Run,
    as_written,
    assert_close,
    conv,
    functional,
    images,
    laid_out,
    shake,
    unet,
)

from tfaccel.compat.onednn import takes_bfloat16
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import FusedNorm, Layout, MixedPrecision

layers = keras.layers


def count(function, *inputs):
    """How many of each op are in the graph that TensorFlow made of a traced function."""
    from tensorflow.python.eager import context

    with context.collect_graphs(optimized=True) as graphs:
        function(*[tf.constant(x) for x in inputs])
    nodes = [n for g in graphs for part in (g, *g.library.function) for n in nodes_of(part)]
    return collections.Counter(node.op for node in nodes)


def nodes_of(part):
    return part.node if hasattr(part, "node") else part.node_def


def transposes(model, *others, shape=SHAPE, training=True):
    run = Run(model, shape, context=laid_out(model, *others), training=training)
    found = count(run.function, np.ones(shape, "float32"))
    return found["Transpose"]


def test_transposes_remain_at_the_edges_only():
    """One for the input and one for its gradient; likewise for images that come out."""

    def classifier(x):
        x = conv()(x)
        for _ in range(2):
            y = layers.ReLU()(layers.BatchNormalization(axis=1)(conv()(x)))
            x = layers.Concatenate(axis=1)([layers.Add()([x, y]), y])
            x = conv(4, strides=2, activation="relu")(x)
        return layers.Dense(2)(layers.GlobalAveragePooling2D(**FIRST)(x))

    assert transposes(functional(SHAPE, classifier)) == 2
    flat_classifier = functional(
        SHAPE, lambda x: layers.Dense(3)(layers.Flatten(**FIRST)(conv()(conv()(x))))
    )
    assert transposes(flat_classifier) == 2
    inner = functional((None, 4, 5, 6), lambda t: layers.ReLU()(conv()(t)))
    nested_model = functional(SHAPE, lambda x: layers.Flatten(**FIRST)(inner(inner(conv()(x)))))
    assert transposes(nested_model) == 2
    assert transposes(functional(SHAPE, lambda x: conv()(conv()(x)))) == 4
    # One more for the mask of SpatialDropout, a number a channel.
    assert transposes(unet(first=True), shape=(1, 3, 22, 26)) == 5


@pytest.mark.slow
def test_a_call_of_the_users_own_keeps_three_transposes_a_fork(rng):
    counts = []
    for blocks in (1, 2):
        model = Residual(blocks)
        with as_written(model):
            model(images(rng, *SHAPE))
        counts.append(transposes(model))
    assert counts[1] - counts[0] <= 10


def workload_of(*parts, device=CPU):
    model = keras.Model()
    model.parts = list(parts)
    return Workload(model, device=device)


class OwnCall(layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs)


class OwnOperation(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return super().convolution_op(inputs, kernel)


def test_refusals_name_the_layer():
    for layer in (layers.Conv2D(1, 1), layers.Flatten(**FIRST)):
        assert Layout().unsupported(workload_of(layer)).kind is Refusal.NOTHING
    for layer, refusal, named in (
        (OwnCall(1, 1, name="mine", **FIRST), Refusal.OWN_CODE, "`call`"),
        (OwnOperation(1, 1, name="op", **FIRST), Refusal.OWN_CODE, "`convolution_op`"),
        (layers.ConvLSTM2D(1, 1, name="rnn", **FIRST), Refusal.CASE, "ConvLSTM2D"),
    ):
        unsupported = Layout().unsupported(workload_of(layer))
        assert unsupported.kind is refusal
        assert repr(layer.name) in unsupported.cause and named in unsupported.cause
        assert "channels_last" in unsupported.remedy
        assert Layout().unsupported(workload_of(layer, conv())) is None
    shadowed = conv(name="patched")
    shadowed.call = lambda inputs: inputs
    assert "'patched'" in Layout().unsupported(workload_of(shadowed)).cause


def test_obstacles_tell_of_every_channels_first_layer():
    parts = [conv(), OwnCall(1, 1, **FIRST), layers.ReLU(), layers.MaxPooling2D(**FIRST)]
    found = list(Layout().layers(workload_of(*parts)))
    assert [(layer, bool(obstacle)) for layer, obstacle in found] == [
        (parts[0], False),
        (parts[1], True),
        (parts[3], False),
    ]


def test_several_replicas_are_refused():
    strategy = types.SimpleNamespace(num_replicas_in_sync=2)
    unsupported = Layout().unsupported(
        Workload(types.SimpleNamespace(distribute_strategy=strategy))
    )
    assert unsupported.kind is Refusal.REPLICAS


@pytest.mark.parametrize(
    "error, helps",
    [
        (tf.errors.UnimplementedError(None, None, "only supports the NHWC tensor format"), True),
        (tf.errors.InvalidArgumentError(None, None, "only supports NDHWC on the CPU"), True),
        (tf.errors.InvalidArgumentError(None, None, "shapes differ"), False),
        (ValueError("NHWC"), False),
    ],
)
def test_it_rescues_steps_that_lack_kernels(error, helps):
    assert bool(Layout().fallback_reason(error)) is helps


def test_fused_norm_goes_along(rng):
    """BatchNormalization along the channels is one op where they are last."""

    def body(x):
        x = layers.BatchNormalization(axis=1)(conv()(x))
        x = layers.LayerNormalization(axis=1)(conv()(x))
        return conv()(layers.BatchNormalization(axis=1)(conv()(x)))

    model = functional(SHAPE, body)
    shake(model, rng)
    x = images(rng, *SHAPE)
    others = model.non_trainable_variables
    before = [v.numpy() for v in others]
    results = []
    for passes in ([], [FusedNorm()]):
        run = Run(model, SHAPE, context=laid_out(model, *passes), training=True)
        results.append([*run(x), *(v.numpy() for v in others)])
        for variable, value in zip(others, before, strict=True):
            variable.assign(value)
    assert_close(results[1], results[0], 1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_mixed_precision_goes_along(dtype, rng):
    """16-bit layers, and no transposes between them; dropout masks drawn as without."""

    def body(x):
        x = layers.BatchNormalization(axis=1)(conv(use_bias=False)(x))
        x = layers.PReLU("normal")(layers.Dropout(0.5)(layers.ReLU()(x)))
        return layers.Dense(3)(layers.GlobalAveragePooling2D(**FIRST)(conv()(x)))

    model = functional(SHAPE, body)
    shake(model, rng)
    (seed,) = (v for v in model.non_trainable_variables if "seed" in v.path)
    drawn = seed.numpy()
    plain, mixed = (
        Run(model, SHAPE, context=laid_out(model, *passes), training=True)
        for passes in ([], [MixedPrecision(dtype)])
    )
    x = images(rng, *SHAPE)
    expected = plain(x)
    seed.assign(drawn)
    assert_close(mixed(x), expected, {"bfloat16": 0.1, "float16": 0.02}[dtype])
    kernels = [n for n in mixed.function.graph.get_operations() if n.type == "Conv2D"]
    assert kernels
    # Eigen's convolutions add up in bfloat16, so there they get their operands in float32.
    computed = "float32" if dtype == "bfloat16" and not takes_bfloat16() else dtype
    assert {n.outputs[0].dtype.name for n in kernels} == {computed}
    assert {n.get_attr("data_format") for n in kernels} == {b"NHWC"}


@pytest.mark.slow
def test_xla_compiles_it(rng):
    model = functional(SHAPE, CHAINS["joined"])
    x = images(rng, *SHAPE)
    plain = Run(model, SHAPE, context=as_written(model), training=True)(x)
    run = Run(model, SHAPE, context=laid_out(model), training=True, jit_compile=True)
    assert_close(run(x), plain)
