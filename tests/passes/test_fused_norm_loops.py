"""FusedNorm by loops that XLA compiles, and activations that join them, against Keras."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed, with_slow
from early import built_early
from norms import (
    BY_LOOPS,
    CPU,
    FUSED,
    GPU,
    SHAPES,
    BatchNormalization,
    Run,
    assert_close,
    assert_same_as_keras,
    workload_of,
)

from tfaccel.core.plan import Plan, make_pass
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.ops.batch_norm import moments
from tfaccel.passes.normalization.fused_norm import FusedNorm

pytestmark = pytest.mark.usefixtures("unoptimised")
# The batch is not known while tracing.
SAMPLES = {"known": "samples"}
TRAINED = pytest.mark.parametrize(
    "training, trainable", [(True, True), (False, True), (True, False)]
)


def assert_loops_same_as_keras(make, shape, rng, kwargs, **options):
    fused = assert_same_as_keras(make, shape, rng, SAMPLES | kwargs, by=BY_LOOPS, **options)
    assert FUSED not in fused.ops()
    return fused


# What the batch's sums go over is a matter of training; without it channels stand alone. One
# sample, and rows of one, are met in the other shapes.
@pytest.mark.parametrize(
    "shape",
    with_slow([*SHAPES, (3, 37, 1, 2), (2, 64, 33, 2)], [(2, 3, 4, 5, 2), (3, 1, 1, 2), (1, 3)]),
    ids=str,
)
def test_every_rank_and_size(shape, rng):
    for training in (True, False) if shape in SHAPES[:1] else (True,):
        assert_loops_same_as_keras(BatchNormalization, shape, rng, {"training": training})


@pytest.mark.parametrize("scale, center", [(True, False), (False, True), (False, False)])
def test_scale_and_center_may_be_off(scale, center, rng):
    def make():
        return BatchNormalization(scale=scale, center=center)

    assert_loops_same_as_keras(make, (4, 5, 6, 3), rng, {"training": True})


@TRAINED
def test_options_within_xla(training, trainable, rng):
    def make():
        return BatchNormalization(trainable=trainable, momentum=0.5, epsilon=0.1)

    assert_loops_same_as_keras(make, (4, 3, 3, 2), rng, {"training": training}, jit_compile=True)


def test_sizes_that_are_not_known_are_left_to_the_op(rng):
    fused = assert_same_as_keras(
        BatchNormalization, (4, 5, 6, 3), rng, {"training": True}, by=BY_LOOPS
    )
    assert FUSED in fused.ops()


@pytest.mark.parametrize(
    "steps, size, loops", [(100, 8, False), (100, 160, True), (10**6, 8, True), (None, 8, True)]
)
@pytest.mark.parametrize("item", [FusedNorm(), BY_LOOPS], ids=["by length", "always"])
def test_loops_are_compiled_where_the_steps_to_come_make_up_for_it(item, steps, size, loops):
    layer = BatchNormalization()
    layer.build((None, size, size, 4))
    context = StepContext(dataclasses.replace(workload_of(layer), steps_to_come=steps))

    @tf.function(input_signature=[tf.TensorSpec((None, size, size, 4))], autograph=False)
    def run(x):
        return layer(x, training=True)

    with item.applied(context):
        ops = {op.type for op in run.get_concrete_function().graph.get_operations()}
    assert (FUSED not in ops) == (loops or item is BY_LOOPS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_16_bits_are_left_to_the_op(dtype):
    layer = BatchNormalization(dtype=f"mixed_{dtype}")
    layer.build((None, 3))
    fused = Run(layer, (4, 3), dtype, fused=BY_LOOPS, training=True, known="all")
    assert FUSED in fused.ops()


def test_a_gpu_and_several_replicas_have_the_op(monkeypatch):
    layer = BatchNormalization()
    assert BY_LOOPS.compiles(workload_of(layer, device=CPU))
    assert not BY_LOOPS.compiles(workload_of(layer, device=GPU))
    assert not FusedNorm(loops=False).compiles(workload_of(layer, device=CPU))
    monkeypatch.setattr(Workload, "num_replicas", 2)
    assert not BY_LOOPS.compiles(workload_of(layer, device=CPU))


def test_channels_first_is_turned(rng):
    assert_loops_same_as_keras(
        lambda: BatchNormalization(axis=1), (2, 3, 4, 5), rng, {"training": True}
    )


def test_a_small_variance_of_large_numbers_keeps_its_digits(rng):
    x = (1e3 + rng.normal(size=(64, 32, 32, 2))).astype("float32")
    mean, variance = moments(tf.constant(x))
    wide = x.astype("float64")
    # Single sums of float32 would be off by 1e-4 and more; a difference of squares by all.
    np.testing.assert_allclose(mean, wide.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(variance, wide.var((0, 1, 2)), rtol=1e-4)


# Activations behind a normalization

LAYERS = keras.layers
JOINED = {
    "relu": lambda: LAYERS.ReLU(),
    "relu6": lambda: LAYERS.ReLU(6.0),
    "activation relu": lambda: LAYERS.Activation("relu"),
    "activation relu6": lambda: LAYERS.Activation("relu6"),
    "silu": lambda: LAYERS.Activation("silu"),
    "gelu": lambda: LAYERS.Activation("gelu"),
}


class Halved(LAYERS.ReLU):
    def call(self, inputs):
        return 0.5 * super().call(inputs)


ALONE = {
    "leaky": lambda: LAYERS.ReLU(negative_slope=0.1),
    "threshold": lambda: LAYERS.ReLU(threshold=0.5),
    "other bound": lambda: LAYERS.ReLU(max_value=1.0),
    "other function": lambda: LAYERS.Activation("tanh"),
    "own call": Halved,
    "another dtype": lambda: LAYERS.ReLU(dtype="float64"),
}


def model_with(activation, trainable=True, read_twice=False):
    keras.utils.set_random_seed(5)
    inputs = keras.Input((4, 4, 3))
    normal = BatchNormalization(momentum=0.5, trainable=trainable)(inputs)
    outputs = activation(normal)
    if read_twice:
        outputs = LAYERS.Concatenate()([outputs, normal])
    return keras.Model(inputs, outputs)


class Step:
    """One traced step of a model: its outputs, all gradients, and its state after it."""

    def __init__(self, model, by, jit_compile=False, training=True):
        self._model = model
        spec = tf.TensorSpec((None, 4, 4, 3))

        @tf.function(input_signature=[spec], jit_compile=jit_compile, autograph=False)
        def run(x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = model(x, training=training)
                value = tf.reduce_sum(y * tf.cast(tf.cos(tf.cast(y, tf.float32) + 1.0), y.dtype))
            return [y, *tape.gradient(value, [x, *model.trainable_variables])]

        plan = Plan(() if by is None else (by,))
        with plan.applied(StepContext(Workload(model, device=CPU))):
            self.graph = run.get_concrete_function().graph
        self._run = run

    def __call__(self, x):
        return [t.numpy() for t in self._run(x)] + self._model.get_weights()


def assert_models_same_as_keras(rng, make, jit_compile=False, training=True, **options):
    """Several steps of a model by Keras and by loops agree; returns the latter."""
    own, other = (model_with(make(), **options) for _ in range(2))
    for model in (own, other):
        for weight in model.weights:
            values = np.linspace(0.5, 1.5, 3)
            weight.assign(values if "variance" in weight.path else values - 1.2)
    plain, fused = (
        Step(model, by, jit_compile, training) for model, by in ((own, None), (other, BY_LOOPS))
    )
    for size in (5, 1):
        x = tf.cast(3.0 * rng.normal(size=(size, 4, 4, 3)), tf.float32)
        assert_close(fused(x), plain(x), rtol=1e-4, atol=1e-4)
    return fused


def own_activation(step):
    """Whether the step has the activation as an op of its own."""
    kinds = {op.type for op in step.graph.get_operations()}
    return bool(kinds & {"Relu", "Relu6", "Sigmoid", "Erf", "Erfc"})


@pytest.mark.parametrize("make", JOINED.values(), ids=JOINED)
def test_an_activation_joins_the_loops(make, rng):
    assert not own_activation(assert_models_same_as_keras(rng, make))


# With the statistics that it keeps, the activation is part of other loops.
@crossed(("name", "kept"), ["relu6", "silu"], [(False, True), (True, False)])
def test_an_activation_joins_the_loops_by_kept_statistics(name, kept, rng):
    options = dict(zip(("training", "trainable"), kept, strict=True))
    assert not own_activation(assert_models_same_as_keras(rng, JOINED[name], **options))


@pytest.mark.parametrize("make", [JOINED["relu6"], JOINED["silu"]])
def test_what_others_read_stays_right(make, rng):
    assert_models_same_as_keras(rng, make, read_twice=True)


def test_it_joins_within_xla(rng):
    assert_models_same_as_keras(rng, JOINED["silu"], jit_compile=True)


@pytest.mark.parametrize("make", ALONE.values(), ids=ALONE)
def test_other_activations_stay_alone(make, rng):
    assert_models_same_as_keras(rng, make)


def test_what_was_joined_is_not_computed_twice():
    """The normalization that only the activation reads is left out of what runs."""
    model = model_with(LAYERS.ReLU())
    step = Step(model, BY_LOOPS)
    calls = [op for op in step.graph.get_operations() if op.type.endswith("PartitionedCall")]
    outputs = {tensor.op.name for tensor in step.graph.outputs}
    read = {tensor.op.name for op in step.graph.get_operations() for tensor in op.inputs}
    passed_on = [
        op
        for op in step.graph.get_operations()
        if op.type == "IdentityN" and op.name not in read | outputs
    ]
    assert len(passed_on) == 1  # the layer's own output
    assert all(op.type == "PartitionedCall" for op in calls)  # stateless, so that it is pruned


def test_nothing_is_left_behind():
    model = model_with(LAYERS.ReLU())
    before = [dict(vars(layer)) for layer in model.layers]
    with BY_LOOPS.applied(StepContext(Workload(model, device=CPU))):
        assert "call" in vars(model.layers[-1])
    assert [dict(vars(layer)) for layer in model.layers] == before


def test_training_with_an_activation_that_fused_activation_serves(rng):
    x = rng.normal(size=(12, 4, 4, 3)).astype("float32")
    results = []
    for names in ((), ("fused_norm", "fused_activation"), ("fused_activation", "fused_norm")):
        model = model_with(LAYERS.Activation("silu"))
        model.compile("sgd", "mse")
        built_early(model)
        plan = Plan(tuple(make_pass(name) for name in names))
        with plan.applied(StepContext(Workload(model, device=CPU))):
            model.make_train_function(force=True)
            model.fit(x, x, batch_size=5, epochs=2, shuffle=False, verbose=0)
        results.append(model.get_weights())
    for other in results[1:]:
        assert_close(other, results[0], rtol=1e-4, atol=1e-5)
