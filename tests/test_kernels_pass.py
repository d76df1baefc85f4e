"""The pass `kernels`: what it measures, what layers run, what it says of them."""

import contextlib
import json
import warnings

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

import tfaccel
from tfaccel import ops
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.core.machine_class import MachineClass
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.explain.api import explain
from tfaccel.measure import numerics
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.kernels import KERNELS, Candidate, Measured, Ranking, Store, kernels, reference
from tfaccel.ops.kernels._opencl import missing
from tfaccel.passes import XLA, FusedNorm, Kernels, MixedPrecision
from tfaccel.passes.kernels import _selection
from tfaccel.passes.kernels._selection import Selection
from tfaccel.steps.snapshot import Snapshot, build_all
from tfaccel.system.device import Device

layers = keras.layers
CPU = Device("CPU", "plain CPU")


def products(data_format="channels_last"):
    """One layer of every kind that is served."""
    shape = (9, 8, 4) if data_format == "channels_last" else (4, 9, 8)
    where = {"data_format": data_format}
    x = inputs = keras.Input(shape)
    x = layers.Conv2D(6, 3, padding="same", activation="relu", name="plain", **where)(x)
    x = layers.Conv2D(4, 1, strides=2, use_bias=False, name="one", **where)(x)
    x = layers.Conv2D(4, 3, padding="same", groups=2, name="grouped", **where)(x)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", name="deep", **where)(x)
    x = layers.SeparableConv2D(5, 2, activation="tanh", name="separable", **where)(x)
    x = layers.Reshape((-1, 5))(x)
    x = layers.Conv1D(6, 2, padding="causal", dilation_rate=2, name="causal")(x)
    x = layers.Dense(4, activation="gelu", name="each")(x)
    x = layers.Reshape((1, 1, -1, 4))(x)
    x = layers.Conv3D(3, 1, name="volume")(x)
    model = keras.Model(inputs, layers.Dense(2, name="head")(layers.Flatten()(x)))
    model.compile("sgd", "mse")
    return model


def workload_of(model, batch=3, **arguments):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2 * batch, *model.input_shape[1:])).astype("float32")
    y = rng.normal(size=(2 * batch, *model.output_shape[1:])).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch)
    build_all(model, data.element_spec)
    return Workload(model, (next(iter(data)),), data.element_spec, **arguments)


class LosesTheBatch(layers.Layer):
    """Puts out what it is given, as a tensor of unknown batch size."""

    def call(self, x):
        return tf.boolean_mask(x, tf.ones(tf.shape(x)[0], tf.bool))

    def compute_output_shape(self, input_shape):
        return input_shape


def ranked(spec, winner="tensorflow", gain=3.0):
    """A ranking in which one kernel won, if it serves."""
    rows = []
    for kernel in kernels(spec.op, spec.direction):
        if kernel.name == winner != "tensorflow" and kernel.unsupported(spec) is None:
            speedup = Speedup(gain, gain - 0.1, gain + 0.1, 6)
            rows.append(Candidate(kernel.name, Outcome.FASTER, 1e-3, speedup, 1e-7))
        elif kernel.name == "tensorflow":
            rows.append(Candidate(kernel.name, Outcome.BASELINE, 3e-3, Speedup()))
        else:
            rows.append(Candidate(kernel.name, Outcome.REFUSED, reason="not now"))
    return Ranking(spec, tuple(rows))


@pytest.fixture
def measured(monkeypatch):
    """What was measured, in order; and who wins (by default nobody)."""
    asked = []

    def measure(spec, clock, deadline, likely, families):
        assert likely is None
        asked.append(spec)
        if hasattr(clock, "advance"):
            clock.advance(1.0)
        return ranked(spec, measure.winner)

    measure.winner = "tensorflow"
    measure.asked = asked
    monkeypatch.setattr(_selection, "measure", measure)
    # Nothing was measured anywhere, so that every kernel is worth a look.
    monkeypatch.setattr(_selection, "shipped", tuple)
    # The steps of tests are so short that nothing would be too small, or all.
    monkeypatch.setattr(_selection, "_LEAST_SHARE", 0.0)
    return measure


def context_of(model, **arguments):
    return StepContext(workload_of(model, **arguments))


def prepared(context, *others, item=None, clock=None, seconds=1e9):
    item = item or Kernels()
    clock = clock or FakeClock()
    Plan((*others, item)).prepare(context, clock, clock() + seconds)
    return context.prepared["kernels"]


# What is computed


class Forced(Selection):
    """Every product by one kernel, where that serves."""

    def __init__(self, name):
        super().__init__()
        self.name = name
        self.used = set()

    def wanted(self, layer, specs, compiled=True):
        return True

    def choose(self, spec, compiled=True):
        for kernel in KERNELS:
            same = (kernel.op, kernel.direction, kernel.name) == (
                spec.op,
                spec.direction,
                self.name,
            )
            if same and kernel.unsupported(spec) is None:
                self.used.add((spec.op, spec.direction))
                return kernel
        return reference(spec.op, spec.direction)


@pytest.fixture(scope="module")
def untouched():
    """A workload with products of every kind, its probe, and what that saw of Keras's own step."""
    keras.utils.set_random_seed(1)
    workload = workload_of(products())
    context = StepContext(workload)
    probe = StepRecorder(workload, Snapshot.of(workload), context.prepared)
    return context, probe, probe.observe(Plan())


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("tensorflow", 15),
        ("matmul_1x1", 6),
        ("im2col", 6),
        ("shifted", 6),
        ("flipped", 1),
        ("split_groups", 3),
        ("fused_offsets", 2),
        ("xla", 12),
        pytest.param(
            *("opencl", 12),
            marks=pytest.mark.skipif(missing() is not None, reason=str(missing())),
        ),
    ],
)
def test_layers_are_those_of_keras_by_any_kernel(name, count, untouched):
    """Losses, gradients and updates against Keras's own, for each kernel wherever it serves."""
    context, probe, expected = untouched
    forced = context.prepared["kernels"] = Forced(name)
    found = numerics.compare(expected, probe.observe(Plan((Kernels(),)), expected))
    assert found.gradient < 1e-5 and found.loss < 1e-6 and found.update < 1e-6, found
    assert len(forced.used) == count, forced.used


@pytest.mark.parametrize(
    "make",
    [
        lambda **where: layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", **where),
        lambda **where: layers.DepthwiseConv2D(3, depth_multiplier=2, **where),
        lambda **where: layers.SeparableConv2D(5, 2, padding="same", use_bias=False, **where),
    ],
)
def test_channels_first(make):
    """Against the same layer with its channels last: TensorFlow has no others on a CPU."""
    last, first = (make(data_format=f"channels_{where}") for where in ("last", "first"))
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 4)).astype("float32")
    expected = last(x)
    first.build((None, 4, 7, 6))
    first.set_weights(last.get_weights())
    model = keras.Sequential([first])
    context = StepContext(Workload(model))
    context.prepared["kernels"] = Forced("im2col")
    with Kernels().applied(context):
        found = first(np.moveaxis(x, -1, 1))
    np.testing.assert_allclose(np.moveaxis(found, 1, -1), expected, rtol=1e-4, atol=1e-5)


def test_a_fit_is_the_same_fit(measured):
    measured.winner = "im2col"

    def losses(*callbacks):
        keras.utils.set_random_seed(3)
        model, arguments = catalogue.images_from_tf_data()
        return model.fit(**arguments, verbose=0, callbacks=list(callbacks)).history["loss"]

    accel = tfaccel.AccelCallback([Kernels()])
    np.testing.assert_allclose(losses(accel), losses(), rtol=1e-4)
    assert accel.plan == Plan((Kernels(),))
    assert {spec.x[0] for spec in measured.asked} == {8}  # the batch's size is known


class NoCall(keras.Model):
    """Two parts, a step of its own and, as many have that are written like this, no `call`."""

    def __init__(self):
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="encoder")])
        self.decoder = keras.Sequential([keras.Input((4,)), layers.Dense(6, name="decoder")])

    def train_step(self, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self.decoder(self.encoder(x)) - x))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss}


def test_products_of_a_train_step_of_the_users_own_are_seen(measured):
    def losses(callbacks):
        keras.utils.set_random_seed(2)
        model = NoCall()
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9))
        x = np.random.default_rng(0).normal(size=(12, 6)).astype("float32")
        fitted = model.fit(x, batch_size=4, epochs=2, verbose=0, callbacks=callbacks)
        return fitted.history["loss"]

    accel = tfaccel.AccelCallback(["kernels"], verbose=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_kernels = losses([accel])
    assert accel.plan.names == ("kernels",)
    assert {spec.w for spec in measured.asked} == {(6, 4), (4, 6)}
    np.testing.assert_allclose(with_kernels, losses([]), rtol=1e-5)


def test_a_kernel_that_fails_leaves_the_training_as_it_is(measured):
    measured.winner = "broken"

    @ops.register_kernel("matmul", name="broken")
    def broken(spec, x, w):
        raise ValueError("it broke")

    try:
        model = keras.Sequential([layers.Dense(4), layers.Dense(1)])
        model.compile("sgd", "mse")
        x = np.ones((32, 3), "float32")
        with pytest.warns(RuntimeWarning, match="it broke"):
            accel = tfaccel.AccelCallback(["kernels"])
            model.fit(x, x[:, :1], batch_size=8, verbose=0, callbacks=[accel])
        assert accel.plan == Plan()
    finally:
        ops.unregister_kernel("matmul", "broken")


# What is measured


def test_each_shape_is_measured_once_in_each_direction(measured):
    context = context_of(products())
    selection = prepared(context)
    assert set(selection.seen) == {
        *("plain", "one", "grouped", "deep", "separable", "causal", "each", "volume", "head")
    }
    assert len(measured.asked) == len(set(measured.asked)) == 3 * 10  # separable is two
    assert {spec.x[0] for spec in measured.asked} == {3}
    sizes = [spec.flops / 1e11 + spec.bytes / 1e10 for spec in measured.asked]
    assert sizes == sorted(sizes, reverse=True)
    prepared(context)
    assert len(measured.asked) == 30
    # Another process, or another model with these shapes.
    prepared(context_of(products()))
    assert len(measured.asked) == 30


def test_another_dtype_is_another_call(measured):
    context = context_of(products())
    prepared(context)
    selection = prepared(context, MixedPrecision("bfloat16"))
    assert {spec.dtype for spec in measured.asked} == {"float32", "bfloat16"}
    # The output layer stays in float32.
    assert {spec.dtype for spec in selection.seen["head"]} == {"float32"}


def test_measuring_ends_in_time(measured):
    clock = FakeClock()
    prepared(context_of(products()), clock=clock, seconds=4.5)
    assert len(measured.asked) == 5
    measured.asked.clear()
    prepared(context_of(products()), item=Kernels(max_seconds=2.5), clock=clock)
    assert len(measured.asked) == 3


def test_what_is_small_beside_the_step_is_not_measured(measured, monkeypatch):
    monkeypatch.setattr(_selection, "_LEAST_SHARE", 1e-3)
    prepared(context_of(products(), step_seconds=1.0))
    assert not measured.asked


def test_what_is_likely_to_win_is_measured(measured, monkeypatch):
    """That first which saves most; not calls on which all lost; `exhaustive` measures all."""
    asked = []

    def measure(spec, clock, deadline, likely, families):
        asked.append((spec.op, likely))
        return ranked(spec)

    monkeypatch.setattr(_selection, "measure", measure)
    known: list[Measured] = []
    monkeypatch.setattr(Store, "measured", lambda store: known)
    context = context_of(products())
    machine = MachineClass.of(context.workload.device)
    prepared(context, seconds=0.0)
    assert not asked
    seen = {spec for specs in context.prepared["kernels"].seen.values() for spec in specs}
    gains = {"matmul": {"xla": 1.5}, "conv1d": {"xla": 4.0, "im2col": 2.0}}
    known += [
        Measured(machine, spec.along(way), 1.0, gains.get(spec.op, {"xla": 0.1, "im2col": 0.1}))
        for spec in seen
        for way in ("forward", "input_gradient", "weight_gradient")
    ]
    prepared(context_of(products()))
    assert {op for op, _ in asked} == {"conv1d", "matmul"}
    assert asked[0] == ("conv1d", ("xla", "im2col"))
    assert asked[-1] == ("matmul", ("xla",))
    asked.clear()
    prepared(context_of(products()), item=Kernels(exhaustive=True))
    assert {"conv2d", "depthwise_conv2d"} < {op for op, _ in asked}  # the others are known by now
    assert {likely for _, likely in asked} == {None}


def test_nothing_is_left_behind(measured):
    workload = workload_of(products())
    before = [(sorted(vars(layer)), layer.losses) for layer in workload.layers]
    weights = [w.numpy() for w in workload.model.weights]
    prepared(StepContext(workload))
    assert [(sorted(vars(layer)), layer.losses) for layer in workload.layers] == before
    for a, b in zip(weights, workload.model.weights, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_trial_says_what_was_found(measured):
    measured.winner = "im2col"
    model, arguments = catalogue.images_from_tf_data()
    report = tfaccel.tune(model, arguments["x"], ["kernels"], verbose=0)
    trial = report.trials[1]
    assert trial.plan == Plan((Kernels(),))
    conv = next(line for line in trial.findings if "conv2d" in line)
    assert "input gradient by im2col (3.00x)" in conv
    assert "matmul_1x1 refused: not now" in conv
    again = tfaccel.Report.from_json(report.to_json())
    assert again == report
    shown = tfaccel.Report(report.trials, trial.plan)
    assert f"- {conv}" in shown.to_markdown()
    assert tfaccel.Report(report.trials, Plan()).findings() == ()


# What runs


def names_of(graph):
    return {op.type for op in graph.get_operations()}


def traced(context, *items):
    """The kinds of ops in a forward pass under some passes."""
    plan = Plan(items)
    model = context.workload.model
    with plan.applied(context):
        x = tf.TensorSpec((None, *model.input_shape[1:]))
        graph = tf.function(lambda x: model(x, training=True)).get_concrete_function(x).graph
    return names_of(graph)


def one_layer():
    model = keras.Sequential([keras.Input((8, 8, 4)), layers.Conv2D(4, 3, name="conv")])
    model.compile("sgd", "mse")
    return model


def test_what_was_measured_for_a_batch_serves_batches_of_any_size(measured):
    measured.winner = "im2col"
    context = context_of(one_layer())
    assert "Conv2D" in traced(context, Kernels())
    prepared(context)
    kinds = traced(context, Kernels())
    assert "MatMul" in kinds and "Conv2D" not in kinds


def test_where_nothing_won_kerass_own_code_runs(measured):
    context = context_of(one_layer())
    context.may_be_empty = False  # what an empty batch needs is added under any pass
    prepared(context)
    assert traced(context, Kernels()) == traced(context)


def test_under_xla_kerass_own_code_runs(measured):
    measured.winner = "im2col"
    context = context_of(one_layer())
    prepared(context)
    for items in ((XLA(), Kernels()), (Kernels(), XLA())):
        assert "Conv2D" in traced(context, *items)


# What it refuses


class Own(layers.Dense):
    def call(self, inputs):
        return super().call(inputs) + 1.0


class Renamed(layers.Conv2D):
    """A subclass that overrides nothing that matters."""

    def get_config(self):
        return super().get_config()


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        ([layers.Flatten()], Refusal.NOTHING),
        ([layers.Flatten(), Own(2, name="mine")], Refusal.OWN_CODE),
    ],
)
def test_models_that_it_refuses(body, refusal):
    model = keras.Sequential([keras.Input((4, 4, 1)), *body])
    model.compile("sgd", "mse")
    assert Kernels().unsupported(Workload(model)).kind is refusal


def test_a_model_that_uses_xla_is_refused():
    model = one_layer()
    model.compile("sgd", "mse", jit_compile=True)
    assert Kernels().unsupported(Workload(model)).kind is Refusal.NO_USE


def test_subclasses_that_change_nothing_are_served():
    model = keras.Sequential([keras.Input((4, 4, 1)), Renamed(2, 3), Own(2)])
    workload = Workload(model)
    assert Kernels().unsupported(workload) is None
    assert [obstacle is None for _, obstacle in Kernels().layers(workload)] == [True, False]
    with Kernels().applied(StepContext(workload)):
        assert "call" in vars(model.layers[0]) and "call" not in vars(model.layers[1])


def test_a_budget_must_be_positive():
    with pytest.raises(ValueError, match="`max_seconds` must be positive. Received: 0"):
        Kernels(max_seconds=0)


# explain


def test_explain_says_what_was_measured_on_this_machine(measured):
    measured.winner = "im2col"
    model = one_layer()
    found = {row.layer: row for row in explain(model).rows}
    assert "kernels" not in found["conv"].would
    with contextlib.suppress(KeyError):
        prepared(context_of(model))
    row = {row.layer: row for row in explain(model).rows}["conv"]
    assert "input gradient by im2col (3.00x)" in row.would["kernels"]
    assert any("kernels: forward: " in text and "shifted" in text for text in row.why_not)
    under = {row.layer: row for row in explain(model, ["kernels"]).rows}["conv"]
    assert under.runs_as.startswith("convolution, forward by im2col (3.00x)")
    other = {row.layer: row for row in explain(model, device=CPU).rows}["conv"]
    assert "kernels" in other.would or Store.at().path.exists()


def test_findings_are_json(measured):
    context = context_of(products())
    prepared(context)
    lines = Kernels().findings(context)
    assert len(lines) == 10
    assert json.loads(json.dumps(lines)) == list(lines)
    assert all(": TensorFlow's own [" in line for line in lines)


def test_it_goes_with_other_passes(measured):
    measured.winner = "im2col"
    workload = catalogue.image_workload()
    context = StepContext(workload)
    probe = StepRecorder(workload, Snapshot.of(workload), context.prepared)
    reference_step = probe.observe(Plan())
    prepared(context, FusedNorm())
    found = probe.observe(Plan((FusedNorm(), Kernels())), reference_step)
    drift = numerics.compare(reference_step, found)
    assert drift.violation(numerics.TOLERANCES["float32"]) is None


def test_a_call_of_unknown_size_is_left_to_tensorflow():
    model = keras.Sequential([keras.Input((4,)), LosesTheBatch(), layers.Dense(2, name="late")])
    model.compile("sgd", "mse")
    context = context_of(model)
    Plan((Kernels(),)).prepare(context, FakeClock())
    specs = context.prepared["kernels"].seen["late"]
    assert [spec.is_known for spec in specs] == [False]
    assert Kernels().findings(context) == ()
