"""full_precision: a model written for 16 bits, where they are emulated."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.trial import coarsest_dtype
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics
from tfaccel.passes import FullPrecision, FusedNorm, Kernels
from tfaccel.steps.snapshot import Snapshot, build_all
from tfaccel.system.device import Device

layers = keras.layers
PLAIN = Device("CPU", "plain CPU", 2, frozenset({"avx2"}))
ZEN5 = dataclasses.replace(PLAIN, name="Zen 5", flags=frozenset({"avx2", "avx512_bf16"}))
AMPERE = Device("GPU", "A100", compute_capability=(8, 0))
PASCAL = Device("GPU", "P100", compute_capability=(6, 0))


def convolutional(policy: str, rate: float = 0.0) -> keras.Model:
    """A small image model; its outputs are float32 under every policy."""
    x = inputs = keras.Input((9, 9, 3))
    x = layers.Conv2D(6, 3, strides=2, use_bias=False, name="conv", dtype=policy)(x)
    x = layers.BatchNormalization(name="norm", dtype=policy)(x)
    x = layers.DepthwiseConv2D(3, padding="same", activation="relu", name="wise", dtype=policy)(x)
    x = layers.Dropout(rate, seed=3, name="noise", dtype=policy)(x)
    x = layers.Flatten(name="flat", dtype=policy)(x)
    x = layers.Dense(8, activation="softmax", name="gate", dtype=policy)(x)
    model = keras.Model(inputs, layers.Dense(3, name="head", dtype="float32")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # It has slots, as Adam has, and takes half the time to trace.
    optimizer = keras.optimizers.SGD(0.05, momentum=0.9)
    model.compile(optimizer, loss, metrics=["accuracy"])
    return model


@pytest.fixture
def data(rng):
    return rng.normal(size=(24, 9, 9, 3)).astype("float32"), rng.integers(0, 3, 24)


def workload_of(model, data, device=PLAIN):
    batches = tf.data.Dataset.from_tensor_slices(data).batch(8)
    return Workload(model, (next(iter(batches)),), batches.element_spec, device=device)


def probe_of(workload):
    build_all(workload.model, workload.element_spec)
    return StepRecorder(workload, Snapshot.of(workload))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_what_computes_in_which_dtype(policy, data):
    workload = workload_of(convolutional(policy, rate=0.5), data)
    own = policy.removeprefix("mixed_")
    with FullPrecision().applied(StepContext(workload)):
        found = {layer.name: str(layer.compute_dtype) for layer in workload.model.layers[1:]}
    changed = dict.fromkeys(("conv", "norm", "wise", "flat", "gate"), "float32")
    assert found == changed | {"noise": own, "head": "float32"}
    why = {layer.name: str(why) for layer, why in FullPrecision().layers(workload) if why}
    assert "would draw others in float32" in why["noise"]
    assert "computes in float32" in why["head"]


def test_outputs_keep_their_dtype(data):
    model = keras.Sequential(
        [layers.Flatten(dtype="mixed_float16"), layers.Dense(3, dtype="mixed_float16", name="head")]
    )
    model.build((None, 9, 9, 3))
    workload = workload_of(model, data)
    with FullPrecision().applied(StepContext(workload)):
        assert str(model.get_layer("head").compute_dtype) == "float16"
        assert model(data[0][:2]).dtype == tf.float16
    why = {layer.name: str(why) for layer, why in FullPrecision().layers(workload) if why}
    assert why["head"] == "layer 'head' makes an output of the model"


@pytest.mark.parametrize(
    ("policy", "beside"),
    [
        ("mixed_float16", (FusedNorm(), Kernels())),
        pytest.param("mixed_bfloat16", (), marks=pytest.mark.slow),
        pytest.param("mixed_float16", (), marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", (FusedNorm(), Kernels()), marks=pytest.mark.slow),
    ],
    ids=["float16 in a plan", "bfloat16 alone", "float16 alone", "bfloat16 in a plan"],
)
def test_it_computes_what_the_model_does_in_float32(policy, beside, data):
    model, twin = convolutional(policy), convolutional("float32")
    twin.set_weights(model.get_weights())
    (norm, *others) = beside or (None,)
    plan = Plan(tuple(item for item in (norm, FullPrecision(), *others) if item))
    probe = probe_of(workload_of(model, data))
    own, found = probe.observe(Plan()), probe.observe(plan)
    expected = probe_of(workload_of(twin, data)).observe(Plan())
    drift = numerics.compare(_named_alike(expected, found), found)
    assert drift.violation(numerics.TOLERANCES["float32"]) is None
    # And the step as it was written does not.
    assert numerics.compare(_named_alike(expected, own), own).gradient > 10 * drift.gradient


def _named_alike(observation, like):
    """An observation of a twin, under the names that the other has."""
    fields = {}
    for field in ("gradients", "trained", "before", "state", "state_before", "counters"):
        values, names = getattr(observation, field).values(), getattr(like, field)
        fields[field] = dict(zip(names, values, strict=True))
    return dataclasses.replace(observation, **fields)


@pytest.mark.parametrize(
    ("policy", "device", "served"),
    [
        ("mixed_bfloat16", PLAIN, True),
        ("mixed_bfloat16", ZEN5, False),
        ("mixed_float16", ZEN5, True),
        ("mixed_bfloat16", AMPERE, False),
        ("mixed_float16", PASCAL, True),
        ("float32", PLAIN, False),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_it_serves_where_the_dtype_is_emulated(policy, device, served, data):
    unsupported = FullPrecision().unsupported(workload_of(convolutional(policy), data, device))
    refusal = Refusal.NOTHING if policy == "float32" else Refusal.NO_USE
    assert getattr(unsupported, "kind", None) is (None if served else refusal)


@pytest.mark.parametrize(
    ("layer", "refusal"),
    [
        (layers.Dense(4, dtype="bfloat16"), Refusal.DTYPE),
        (layers.GaussianNoise(0.5, dtype="mixed_bfloat16"), Refusal.RANDOM),
        (layers.LSTM(4, dropout=0.5, dtype="mixed_bfloat16"), Refusal.RANDOM),
        (layers.LSTM(4, recurrent_dropout=0.5, dtype="mixed_bfloat16"), Refusal.RANDOM),
        (layers.LSTM(4, dtype="mixed_bfloat16"), None),
        (layers.Dropout(0.0, dtype="mixed_bfloat16"), None),
        (layers.MultiHeadAttention(2, 2, dropout=0.5, dtype="mixed_bfloat16"), None),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_keeps_a_layer_in_its_own_dtype(layer, refusal, data):
    inputs = keras.Input((5, 4))
    y = layer(inputs, inputs) if isinstance(layer, layers.MultiHeadAttention) else layer(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="head", dtype="float32")(y))
    why = {id(x): why for x, why in FullPrecision().layers(Workload(model, device=PLAIN))}
    assert getattr(why[id(layer)], "kind", None) is refusal


def test_a_fit_with_a_loss_scale(data, tmp_path):
    """The callback trains it as a float32 model trains; saved, it is the user's model."""
    keras.config.set_dtype_policy("mixed_float16")
    model = convolutional("mixed_float16", rate=0.3)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    keras.config.set_dtype_policy("float32")
    twin = convolutional("float32", rate=0.3)
    built_early(twin, data[1][:1]).set_weights(model.get_weights())
    accel = tfaccel.AccelCallback(plan=["full_precision"], verbose=0)
    arguments = {"batch_size": 8, "epochs": 3, "shuffle": False, "verbose": 0}
    fast = model.fit(*data, **arguments, callbacks=[accel]).history["loss"]
    assert accel.plan.names == ("full_precision",)
    assert fast[-1] < fast[0]
    # Dropout draws other masks in float16, so losses are near and not the same.
    np.testing.assert_allclose(fast, twin.fit(*data, **arguments).history["loss"], rtol=0.3)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.get_layer("conv").dtype_policy.name == "mixed_float16"
    assert model.get_layer("conv").dtype_policy.name == "mixed_float16"


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.slow)]
)
def test_trials_accept_it(policy, data):
    """It is off by the user's own rounding, which is no mistake."""
    workload = workload_of(convolutional(policy), data)
    plan = Plan((FullPrecision(),))
    probe = probe_of(workload)
    own = probe.observe(Plan())
    drift = numerics.compare(own, probe.observe(plan, own))
    assert coarsest_dtype(plan, workload) in numerics.SIXTEEN_BITS
    assert drift.gradient > 1e-4
    assert drift.violation(numerics.NOTICED) is None


@pytest.mark.slow
def test_the_tuner_tries_it(data):
    model = convolutional("mixed_float16")
    accel = tfaccel.AccelCallback(
        includes=["full_precision"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    model.fit(*data, batch_size=8, epochs=4, verbose=0, callbacks=[accel])
    (trial,) = (t for t in accel.report.trials if t.plan.names == ("full_precision",))
    assert trial.outcome.value in ("faster", "slower", "stopped"), trial.reason


def test_predictions_keep_their_dtype(data):
    model = keras.Sequential(
        [
            layers.Flatten(dtype="mixed_float16"),
            layers.Dense(16, activation="relu", dtype="mixed_float16"),
            layers.Dense(3, dtype="mixed_float16"),
        ]
    )
    expected = model.predict(data[0], verbose=0)
    fast = tfaccel.accelerate(model, data[0][:8], plan=["full_precision"], verbose=0)
    found = fast.predict(data[0], verbose=0)
    assert found.dtype == expected.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("policy", "least", "most"), [("mixed_bfloat16", 1e-3, 1), ("float32", 0, 1e-4)]
)
def test_a_step_rounded_otherwise_is_off_by_its_own_rounding(policy, least, most, data):
    probe = probe_of(workload_of(convolutional(policy), data))
    reference = probe.observe(Plan())
    other = probe.near()
    assert least < numerics.compare(reference, other).gradient < most
