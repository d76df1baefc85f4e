"""What only a GPU can show: `pytest -m gpu tests/gpu`.

With TFACCEL_GPU_REHEARSAL=1 the same code runs on a CPU, so that time on a GPU is not lost to a
mistake in a test.
"""

import contextlib
import dataclasses
import functools
import json
import os

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.trial import coarsest_dtype
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.plan import Plan
from tfaccel.measure import numerics
from tfaccel.passes import PASSES, XLA, FusedRNN
from tfaccel.profiling.peaks import peak_flops
from tfaccel.steps.snapshot import Snapshot
from tfaccel.system.device import current_device

layers = keras.layers
REHEARSED = os.environ.get("TFACCEL_GPU_REHEARSAL") == "1"
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not REHEARSED and not tf.config.list_physical_devices("GPU"),
        reason="there is no GPU; TFACCEL_GPU_REHEARSAL=1 runs these tests on the CPU",
    ),
]
ROWS = pytest.mark.parametrize(
    "row",
    [row for row in catalogue.PASS_ROWS if type(row.item) in PASSES],
    ids=lambda row: row.item.name,
)


@pytest.fixture(params=["float32", "tensorfloat32"])
def tensorfloat32(request):
    """Products as TensorFlow makes them on a GPU by itself, and in all bits of float32."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(request.param == "tensorfloat32")
    yield request.param == "tensorfloat32"
    tf.config.experimental.enable_tensor_float_32_execution(before)


@pytest.fixture
def full_float32():
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)


def serving(row):
    """The row's workload on this device; skips where the pass refuses it."""
    workload = row.workload()
    refused = row.item.unsupported(workload)
    if refused is not None:
        pytest.skip(str(refused))
    return workload


def test_the_device_is_known():
    device = current_device()
    assert device.kind == ("CPU" if REHEARSED else "GPU")
    if device.kind == "GPU":
        assert device.name and device.compute_capability
        fast = "bfloat16" if device.compute_capability >= (8, 0) else "float16"
        assert device.fast_dtype == fast
        assert peak_flops(device, fast) is not None


@ROWS
def test_a_pass_is_faithful(row, tensorfloat32):
    """Loss, gradients, update and statistics against the untouched step on the same device."""
    workload = serving(row)
    probe = StepRecorder(workload, Snapshot.of(workload))
    reference = probe.observe(Plan())
    drift = numerics.compare(reference, probe.observe(Plan((row.item,)), reference))
    dtype = coarsest_dtype(Plan((row.item,)), workload)
    # TensorFloat-32 has the 10 bits of float16 in its products.
    bound = numerics.TOLERANCES["float16" if tensorfloat32 and dtype == "float32" else dtype]
    assert drift.violation(bound) is None


@ROWS
@pytest.mark.usefixtures("full_float32")
def test_a_fit_under_a_pass_ends_as_keras_s_own(row):
    """Losses of a short training on the device."""
    workload = serving(row)
    model, batch = workload.model, workload.batches[0]
    state = Snapshot.of(workload)
    data = tf.data.Dataset.from_tensors(batch).repeat(6)
    plain = model.fit(data, epochs=1, verbose=0).history["loss"]
    state.restore()
    accel = tfaccel.AccelCallback(plan=[row.item], verbose=0)
    found = model.fit(data, epochs=1, verbose=0, callbacks=[accel]).history["loss"]
    exact = coarsest_dtype(Plan((row.item,)), workload) == "float32"
    # XLA draws other numbers for dropout than TensorFlow's own kernels.
    bound = 0.1 if isinstance(row.item, XLA) else 1e-4 if exact else 0.05
    np.testing.assert_allclose(found, plain, rtol=bound)


def images(classes=10, **compiling):
    """A net of convolutions, normalizations and dropout, and data that it can learn."""
    rng = np.random.default_rng(4)
    patterns = rng.normal(size=(classes, 16, 16, 3))
    y = rng.integers(0, classes, 512)
    x = (patterns[y] + rng.normal(size=(512, 16, 16, 3))).astype("float32")
    keras.utils.set_random_seed(7)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            layers.Conv2D(16, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(classes),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], **compiling)
    return model, x, y


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bits_learn_as_well_over_500_steps(dtype):
    """Float16 under a scaled loss, which a step that is not finite lowers."""
    if dtype == "float16" and REHEARSED:
        pytest.skip("a CPU has no fast float16")
    accuracies = []
    for plan in ([], [tfaccel.passes.MixedPrecision(dtype)]):
        model, x, y = images()
        accel = [tfaccel.AccelCallback(plan=plan, verbose=0)] if plan else []
        epochs = 4 if REHEARSED else 63
        history = model.fit(x, y, batch_size=64, epochs=epochs, verbose=0, callbacks=accel).history
        accuracies.append(history["accuracy"][-1])
        if plan:
            assert accel[0].plan.names == ("mixed_precision",), accel[0].report.note
    assert all(v.dtype == "float32" for v in model.variables if "seed" not in v.path)
    assert abs(accuracies[0] - accuracies[1]) <= (0.2 if REHEARSED else 0.01)


@pytest.mark.parametrize("jit_compile", ["auto", True, False])
def test_the_search_runs_with_xla_and_without(jit_compile):
    model, x, y = images(jit_compile=jit_compile)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(64, drop_remainder=True)
    report = tfaccel.tune(model, data, tuning_share=None, max_tuning_seconds=40, verbose=0)
    tried = [trial for trial in report.trials if trial.step_seconds is not None]
    assert len(tried) > 1
    assert not [t.reason for t in report.trials if t.outcome is tfaccel.Outcome.FAILED]
    peaks = [trial.peak_memory_bytes for trial in tried[1:]]
    assert all(peak is None if REHEARSED else peak > 0 for peak in peaks)
    json.loads(report.to_json())


def test_cudnn_keeps_its_recurrent_layers(tensorfloat32):
    """cuDNN's LSTM and GRU are faster than any loop: `fused_rnn` leaves them, `explain` says so."""
    inputs = keras.Input((12, 8))
    x = layers.LSTM(16, return_sequences=True)(inputs)
    model = keras.Model(inputs, layers.Dense(1)(layers.GRU(16)(x)))
    model.compile("adam", "mse")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 12, 8)).astype("float32"), rng.normal(size=(64, 1))
    data = tf.data.Dataset.from_tensor_slices((x, y.astype("float32"))).batch(16)
    with offline_trials(model, data) as bench:
        refused = FusedRNN().unsupported(bench.workload)
    assert (refused is None) == REHEARSED
    history = model.fit(data, verbose=0, callbacks=[tfaccel.AccelCallback(verbose=0)]).history
    assert np.isfinite(history["loss"]).all()


@dataclasses.dataclass(frozen=True)
class TooMuchMemory(tfaccel.Pass):
    """Asks for a tensor that no device has room for, in the midst of the step."""

    name = "too_much_memory"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        own = model.compute_loss

        def compute_loss(*args, **kwargs):
            huge = tf.random.uniform(tf.fill([2], 2**24))
            return own(*args, **kwargs) + tf.reduce_sum(huge)

        with instance_attribute(model, "compute_loss", compute_loss):
            yield


def test_a_trial_that_runs_out_of_memory_is_an_outcome():
    model, x, y = images()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(64)
    before = [v.numpy() for v in model.variables]
    # Compiled by XLA the sum would need no tensor.
    without_xla = (XLA(jit_compile=False),) if model.jit_compile else ()
    with offline_trials(model, data) as bench:
        trial = bench.try_plan(Plan((*without_xla, TooMuchMemory())))
    assert trial.outcome is tfaccel.Outcome.FAILED
    assert trial.ran_out_of_memory, trial.reason
    for left, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(left, variable)
    assert np.isfinite(model.fit(data, verbose=0).history["loss"])


def test_the_largest_batch_is_found():
    model, x, y = images()
    limit = None if REHEARSED else 2**30
    report = tfaccel.max_batch_size(
        model, (x[:1], y[:1]), start=64, limit=256, memory_limit_bytes=limit, verbose=0
    )
    assert 0 < report.batch_size <= 256


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.usefixtures("full_float32")
def test_products_are_those_of_float64(dtype):
    """`tfaccel.ops` with their gradients against float64 on the CPU."""
    rng = np.random.default_rng(3)
    x, w = rng.normal(size=(3, 9, 8, 6)), rng.normal(size=(3, 3, 6, 5))

    def outcome(convolve, operands):
        with tf.GradientTape() as tape:
            tape.watch(operands)
            y = convolve(*operands)
            total = tf.reduce_sum(tf.sin(tf.cast(y, tf.float64)))
        return [y, *tape.gradient(total, operands)]

    tfaccels = functools.partial(tfaccel.ops.conv2d, strides=2, padding="same")
    plain = functools.partial(tf.nn.conv2d, strides=2, padding="SAME")
    found = outcome(tf.function(tfaccels), (tf.cast(x, dtype), tf.cast(w, dtype)))
    with tf.device("CPU"):
        expected = outcome(plain, (tf.constant(x), tf.constant(w)))
    bound = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 0.06}[dtype]
    for one, exact in zip(found, expected, strict=True):
        one = tf.cast(one, "float64").numpy()
        assert numerics.relative_error(exact.numpy(), one) < bound


def test_predictions_are_accelerated():
    model, x, _ = images()
    expected = model.predict(x[:64], verbose=0)
    fast = tfaccel.accelerate(model, x[:64], max_tuning_seconds=30, verbose=0)
    np.testing.assert_array_equal(fast.predict(x[:64]).argmax(-1), expected.argmax(-1))


def test_a_profile_has_the_figures_of_a_gpu(tmp_path):
    model, x, y = images()
    profiler = tfaccel.ProfilerCallback(tmp_path, verbose=0)
    model.fit(x, y, batch_size=64, epochs=2, verbose=0, callbacks=[profiler])
    text = "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert text
    if not REHEARSED:
        assert '"mfu"' in text and '"peak_bytes"' in text


def test_the_strategy_takes_what_the_gpu_is_fast_at():
    strategy = tfaccel.AccelStrategy(memory_growth=False)
    with strategy.scope():
        model, x, y = images(jit_compile=strategy.jit_compile)
    accel = tfaccel.AccelCallback(max_tuning_seconds=20, verbose=0)
    history = model.fit(x, y, batch_size=64, epochs=2, verbose=0, callbacks=[accel]).history
    assert np.isfinite(history["loss"]).all()
