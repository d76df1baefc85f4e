"""ONNX Runtime as an engine of tfaccel.accelerate, where it is installed."""

import os

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from engine_checks import (
    check_inputs_are_told_apart,
    check_kind_of_model,
    check_what_is_loaded,
)
from inference_models import CASES, COUNT, accelerate, assert_alike, image_model, numbers
from test_engines import REFUSED, check_threads
from test_saved_predictions import dense_model, run_recipe

import tfaccel
from tfaccel.core.unsupported import Refusal
from tfaccel.inference.engines import ONNXRuntime

for needed in ("onnxruntime", "tf2onnx"):
    pytest.importorskip(needed, reason="the extra onnx is not installed")
layers = keras.layers
winning = inference_models.winning
# Its converter has no MatMul in the dtype.
REFUSED = REFUSED | {"mixed_policy": Refusal.DTYPE}
CONFIGURED = pytest.mark.parametrize("hint", ["latency", "throughput"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_of_model(case, winning):
    check_kind_of_model(case, "onnxruntime", REFUSED)


@CONFIGURED
def test_any_size_of_batch(hint, winning):
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, [ONNXRuntime(hint=hint)])
    assert fast.plan == tfaccel.Plan((ONNXRuntime(hint=hint),)), fast.report.reasons()
    for size in (COUNT, 5, 1, 7):
        expected = model.predict(x, batch_size=size, verbose=0)
        assert_alike(expected, fast.predict(x, batch_size=size, verbose=0), 1e-4, 1e-4)
    more = np.concatenate([x, x, x[:1]])
    assert_alike(model(more).numpy(), fast(more).numpy(), 1e-4, 1e-4)


@CONFIGURED
def test_eight_threads(hint, winning):
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, [ONNXRuntime(hint=hint)])
    assert fast.plan.names == ("onnxruntime",), fast.report.reasons()
    check_threads(fast, model, x)


class Unknown(layers.Layer):
    """A layer of an op that only TensorFlow has."""

    def call(self, inputs):
        return tf.math.bessel_i0e(inputs)


def test_what_can_not_be_converted_is_named(winning, caplog):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), Unknown(name="odd_one")])
    fast = accelerate(model, numbers(4), ["onnxruntime"])
    assert fast.plan.is_baseline
    trial = fast.report.trials[1]
    assert trial.outcome is tfaccel.Outcome.FAILED
    assert "BesselI0e" in trial.reason and "odd_one" in trial.reason
    assert not caplog.records, "what is told in the report is not logged"
    assert_alike(model.predict(numbers(4), verbose=0), fast.predict(numbers(4), verbose=0))


def test_the_environment_stays(winning, monkeypatch):
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "1")
    accelerate(dense_model(), numbers(4), ["onnxruntime"])
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "1"


def test_without_its_converter_it_is_not_tried(monkeypatch):
    monkeypatch.setattr("tfaccel.inference.engines.onnxruntime.CONVERTER", "no_such_module")
    fast = accelerate(dense_model(), numbers(4), includes=["onnxruntime"])
    (trial,) = fast.report.trials[1:]
    assert trial.refusal is Refusal.MISSING and "tfaccel[onnx]" in trial.reason


@CONFIGURED
def test_what_is_loaded_predicts_the_same(hint, winning, tmp_path):
    check_what_is_loaded(ONNXRuntime(hint=hint), tmp_path / "saved", 1e-4)


def test_the_recipe_for_onnx(winning, tmp_path):
    model = dense_model()
    accelerate(model, numbers(4), ["onnxruntime"]).save(tmp_path / "folder")
    found = run_recipe("onnxruntime.InferenceSession", tmp_path, numbers(4)[:5])
    assert_alike(model.predict(numbers(4)[:5], verbose=0), found, 1e-4, 1e-4)


def test_inputs_are_told_apart_by_name(winning, tmp_path):
    check_inputs_are_told_apart("onnxruntime", tmp_path / "saved")


def test_grouped_convolutions_and_gelu(winning):
    inputs = keras.Input((8, 8, 4))
    x = keras.layers.Conv2D(8, 3, groups=4, padding="same")(inputs)
    x = keras.layers.Conv2D(4, 1, activation="gelu")(x)
    model = keras.Model(inputs, keras.layers.Flatten()(x))
    x = numbers(8, 8, 4)
    fast = accelerate(model, x, ["onnxruntime"])
    assert fast.plan.names == ("onnxruntime",), fast.report.reasons()
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0), 1e-4, 1e-5)
