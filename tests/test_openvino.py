"""OpenVINO as an engine of tfaccel.accelerate, where it is installed."""

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
from tfaccel.autotune import portable
from tfaccel.core.unsupported import Refusal
from tfaccel.inference.engines import OpenVINO

openvino = pytest.importorskip("openvino", reason="the extra openvino is not installed")
layers = keras.layers
winning = inference_models.winning
# Its converter does not know the dtype.
REFUSED = REFUSED | {"mixed_policy": Refusal.DTYPE}
CONFIGURATIONS = [OpenVINO(), OpenVINO(hint="throughput"), OpenVINO(precision="bfloat16")]
CONFIGURED = pytest.mark.parametrize("engine", CONFIGURATIONS, ids=str)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_kind_of_model(case, winning):
    check_kind_of_model(case, "openvino", REFUSED)


@CONFIGURED
def test_any_size_of_batch(engine, winning):
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, [engine])
    assert fast.plan == tfaccel.Plan((engine,)), fast.report.reasons()
    tolerance = 5e-2 if engine.precision == "bfloat16" else 1e-4
    for size in (COUNT, 5, 1, 7):
        expected = model.predict(x, batch_size=size, verbose=0)
        found = fast.predict(x, batch_size=size, verbose=0)
        assert_alike(expected, found, tolerance, tolerance)
    more = np.concatenate([x, x, x[:1]])
    assert_alike(model(more).numpy(), fast(more).numpy(), tolerance, tolerance)


@CONFIGURED
def test_eight_threads(engine, winning):
    if engine.precision == "bfloat16":
        pytest.skip("the threads' answers are compared as float32 is")
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, [engine])
    assert fast.plan.names == ("openvino",), fast.report.reasons()
    check_threads(fast, model, x)


def test_an_answer_stays_when_another_is_asked_for(winning):
    fast = accelerate(image_model(), numbers(8, 8, 3), ["openvino"])
    first = fast(numbers(8, 8, 3))
    kept = first.numpy().copy()
    fast(numbers(8, 8, 3, seed=7))
    np.testing.assert_array_equal(first.numpy(), kept)


class Unknown(layers.Layer):
    """A layer of an op that only TensorFlow has."""

    def call(self, inputs):
        return tf.math.bessel_i0e(inputs)


def test_what_can_not_be_converted_is_named(winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3), Unknown(name="odd_one")])
    fast = accelerate(model, numbers(4), ["openvino"])
    assert fast.plan.is_baseline
    trial = fast.report.trials[1]
    assert trial.outcome is tfaccel.Outcome.FAILED
    assert "BesselI0e" in trial.reason and "odd_one" in trial.reason
    assert_alike(model.predict(numbers(4), verbose=0), fast.predict(numbers(4), verbose=0))


def test_compiled_models_are_kept_in_the_cache(tmp_path, winning):
    arguments = {"includes": ["openvino"], "max_tuning_seconds": 1e6}
    accelerate(image_model(), numbers(8, 8, 3), cache_dir=tmp_path, **arguments)
    assert list((tmp_path / "compiled/openvino").iterdir())
    for path in (tmp_path / "compiled/openvino").iterdir():
        path.write_bytes(b"damaged" + path.read_bytes()[7:])
    model = image_model()
    fast = accelerate(model, numbers(8, 8, 3), cache_dir=tmp_path, **arguments)
    found = fast.predict(numbers(8, 8, 3), verbose=0)
    assert_alike(model.predict(numbers(8, 8, 3), verbose=0), found, 5e-2, 5e-2)


def test_what_is_compiled_is_cleared_with_the_cache(tmp_path, winning):
    arguments = {"includes": ["openvino"], "max_tuning_seconds": 1e6}
    accelerate(dense_model(), numbers(4), cache_dir=tmp_path, **arguments)
    (tmp_path / "mine.txt").write_text("mine")
    portable.clear_cache(portable.contents(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@CONFIGURED
def test_what_is_loaded_predicts_the_same(engine, winning, tmp_path):
    check_what_is_loaded(engine, tmp_path / "saved", 1e-3)


def test_the_recipe_for_openvino(winning, tmp_path):
    model = dense_model()
    accelerate(model, numbers(4), ["openvino"]).save(tmp_path / "folder")
    found = run_recipe("openvino.compile_model", tmp_path, numbers(4)[:5])
    assert_alike(model.predict(numbers(4)[:5], verbose=0), found, 1e-4, 1e-4)


def test_inputs_are_told_apart_by_name(winning, tmp_path):
    check_inputs_are_told_apart("openvino", tmp_path / "saved")


def test_nobody_is_told_of_a_conversion(winning, monkeypatch):
    def told(*args, **kwargs):
        raise AssertionError("the converter that sends statistics was called")

    monkeypatch.setattr(openvino, "convert_model", told)
    assert accelerate(dense_model(), numbers(4), ["openvino"]).plan.names == ("openvino",)
