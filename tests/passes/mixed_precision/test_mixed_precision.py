import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from in_16_bits import ZEN5, compiled, run, workload_of

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import MixedPrecision
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.snapshot import Snapshot
from tfaccel.system.device import Device

layers = keras.layers


ZEN3 = Device("CPU", "EPYC", 2, frozenset({"avx2"}))


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

    monkeypatch.setattr(loss_scale, "GROWTH_STEPS", 3)
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
