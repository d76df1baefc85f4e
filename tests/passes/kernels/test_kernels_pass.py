"""The pass `kernels`: what it measures, what runs then, and what it says."""

import contextlib
import json

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from produced import products, ranked, workload_of

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.core.machine_class import MachineClass
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.explain.api import explain
from tfaccel.measure import numerics
from tfaccel.ops.kernels import Measured, Store
from tfaccel.passes import XLA, FusedNorm, Kernels, MixedPrecision
from tfaccel.passes.kernels import _selection
from tfaccel.steps.snapshot import Snapshot
from tfaccel.system.device import Device

layers = keras.layers
CPU = Device("CPU", "plain CPU")


class LosesTheBatch(layers.Layer):
    """Puts out what it is given, as a tensor of unknown batch size."""

    def call(self, x):
        return tf.boolean_mask(x, tf.ones(tf.shape(x)[0], tf.bool))

    def compute_output_shape(self, input_shape):
        return input_shape


def context_of(model, **arguments):
    return StepContext(workload_of(model, **arguments))


def prepared(context, *others, item=None, clock=None, seconds=1e9):
    item = item or Kernels()
    clock = clock or FakeClock()
    Plan((*others, item)).prepare(context, clock, clock() + seconds)
    return context.prepared["kernels"]


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
    monkeypatch.setattr(_selection, "LEAST_SHARE", 1e-3)
    prepared(context_of(products(), step_seconds=1.0))
    assert not measured.asked


def test_what_is_likely_to_win_is_measured(measured, monkeypatch):
    """That first which saves most; not calls on which all lost; `exhaustive` measures all."""
    asked = []

    def measure(spec, clock, deadline, likely, families, expected):
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
