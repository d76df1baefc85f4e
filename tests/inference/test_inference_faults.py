"""Candidates for predictions that fail or differ, and what is remembered of those that won."""

import contextlib
import dataclasses
import math

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from inference_models import accelerate, assert_alike, numbers
from predicted import PLAN

import tfaccel
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.inference import AcceleratedModel
from tfaccel.inference.engines import ENGINES
from tfaccel.inference.predict_function import PredictFunction, own_function
from tfaccel.passes import FrozenWeights

layers = keras.layers
winning = inference_models.winning


@dataclasses.dataclass(frozen=True)
class Failing(tfaccel.Pass):
    name = "failing_to_predict"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        yield
        raise RuntimeError("this can't be traced")


@dataclasses.dataclass(frozen=True)
class Skewed(tfaccel.Pass):
    """Outputs are off by a factor, or where inputs are large NaN."""

    name = "skewed_predictions"
    factor: float = 1.01
    limit: float = math.inf

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        own = context.workload.model.predict_step

        def predict_step(data):
            y = own(data)
            return tf.where(tf.abs(data[0][:, :1]) > self.limit, math.nan, y * self.factor)

        vars(context.workload.model)["predict_step"] = predict_step
        try:
            yield
        finally:
            del vars(context.workload.model)["predict_step"]


def test_a_candidate_that_fails_is_reported(winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    names = ["failing_to_predict", "frozen_weights"]
    fast = accelerate(model, numbers(4), includes=names, max_tuning_seconds=1e6)
    outcomes = {one.plan.names: one for one in fast.report.trials}
    assert outcomes["failing_to_predict",].outcome is tfaccel.Outcome.FAILED
    assert "this can't be traced" in outcomes["failing_to_predict",].reason
    assert fast.plan.names == ("frozen_weights",)


@pytest.mark.parametrize(
    ("tolerance", "used"), [(None, False), (1e-3, False), (0.05, True)], ids=str
)
def test_outputs_that_differ_are_found(tolerance, used, winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    fast = accelerate(model, numbers(4), [Skewed()], tolerance=tolerance)
    tried = fast.report.trials[1]
    assert tried.drift.output == pytest.approx(0.01, rel=1e-3)
    assert (fast.plan.names == ("skewed_predictions",)) == used
    if not used:
        assert tried.outcome is tfaccel.Outcome.UNFAITHFUL
    assert "1.0e-02" in fast.report.to_markdown()


@dataclasses.dataclass(frozen=True)
class SkewedIn16Bits(Skewed):
    name = "skewed_in_16_bits"

    def compute_dtype(self, workload):
        return "bfloat16"


def amplifying(factor):
    """Large numbers of both signs, whose sum is 1: a rounding of one is much of the sum."""
    model = keras.Sequential([keras.Input((256,)), layers.Dense(1, use_bias=False)])
    weights = factor * np.random.default_rng(3).normal(size=(256, 1))
    model.layers[-1].kernel.assign(weights - weights.mean() + 1 / 256)
    return model, 1 + 1e-3 * numbers(256)


@pytest.mark.parametrize(
    ("amplified", "off", "used"),
    [
        (4.0, 0.10, True),  # 16-bit weights make 0.08
        (4.0, 0.19, False),
        (0.01, 0.08, False),  # they make 3e-4
        (20.0, 0.25, False),  # they make 0.13
    ],
)
def test_in_16_bits_outputs_may_be_off_by_what_rounded_weights_make(amplified, off, used, winning):
    model, x = amplifying(amplified)
    before = model.get_weights()[0]
    fast = accelerate(model, x, [SkewedIn16Bits(1 + off)])
    assert fast.report.trials[1].drift.output == pytest.approx(off, rel=1e-3)
    assert (fast.plan.names == ("skewed_in_16_bits",)) == used
    np.testing.assert_array_equal(model.get_weights()[0], before)


def test_outputs_that_turn_nan_are_found(winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    fast = accelerate(model, numbers(4), [Skewed(1.0, limit=0.5)])
    assert fast.report.trials[1].outcome is tfaccel.Outcome.UNFAITHFUL
    assert not math.isfinite(fast.report.trials[1].drift.output)


class FailingFunction(PredictFunction):
    def __call__(self, data):
        raise ZeroDivisionError


def test_a_plan_that_fails_later_is_left():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    function = FailingFunction(Workload(model, training=False), Plan((FrozenWeights(),)))
    own = own_function(model)
    fast = AcceleratedModel(model, numbers(4), Report((), function.plan), own, function)
    with pytest.warns(RuntimeWarning, match="model's own function: frozen_weights failed: Zero"):
        found = fast.predict(numbers(4), verbose=0)
    assert_alike(model.predict(numbers(4), verbose=0), found)
    assert fast.plan.is_baseline


def test_a_model_that_runs_eagerly_is_left_alone():
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    model.compile(run_eagerly=True)
    fast = accelerate(model, numbers(4))
    assert "run_eagerly" in fast.report.note and not fast.report.trials
    assert_alike(model.predict(numbers(4), verbose=0), fast.predict(numbers(4), verbose=0))


def test_a_model_under_a_strategy_is_left_alone():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    fast = accelerate(model, numbers(4))
    assert "OneDeviceStrategy" in fast.report.note
    assert_alike(model.predict(numbers(4), verbose=0), fast.predict(numbers(4), verbose=0))


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="it runs on a GPU")
@pytest.mark.parametrize("plan", ["auto", ["layout"]], ids=str)
def test_a_model_that_can_not_run_here_is_rescued(plan):
    """On a CPU without oneDNN there is no channels_first convolution."""
    first = keras.Sequential(
        [keras.Input((3, 6, 6)), layers.Conv2D(4, 3, data_format="channels_first")]
    )
    last = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(4, 3)])
    last.set_weights(first.get_weights())
    x = numbers(3, 6, 6)
    engines = [kind.name for kind in ENGINES]  # which may round to 16 bits
    fast = accelerate(first, x, plan, excludes=engines, max_tuning_seconds=1)
    expected = np.moveaxis(last.predict(np.moveaxis(x, 1, -1), verbose=0), -1, 1)
    assert_alike(expected, fast.predict(x, verbose=0))
    if fast.plan.names == ("layout",) and "can't run" in fast.report.note:
        assert not fast.report.trials


# The cache.


def test_what_wins_is_remembered(tmp_path, winning):
    def fresh():
        keras.utils.set_random_seed(0)
        return keras.Sequential([keras.Input((4,)), layers.Dense(2)])

    arguments = {"includes": PLAN, "cache_dir": tmp_path, "max_tuning_seconds": 1e6}
    first = accelerate(fresh(), numbers(4), **arguments)
    second = accelerate(fresh(), numbers(4), **arguments)
    assert first.plan == second.plan == tfaccel.Plan((tfaccel.passes.FrozenWeights(),))
    assert second.report.cached and second.report.predicts
    assert_alike(first.predict(numbers(4), verbose=0), second.predict(numbers(4), verbose=0))
    other = accelerate(fresh(), numbers(4)[:3], **arguments)
    assert not other.report.cached


def test_a_search_that_ran_out_of_time_is_not_remembered(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    found = accelerate(model, numbers(4), cache_dir=tmp_path, max_tuning_seconds=0, verbose=0)
    assert not found.report.complete
    assert not list(tmp_path.iterdir())


def test_what_is_remembered_is_compared_again(tmp_path, winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    arguments = {"includes": ["skewed_predictions"], "cache_dir": tmp_path}
    loose = accelerate(model, numbers(4), **arguments, tolerance=0.5)
    assert loose.plan.names == ("skewed_predictions",)
    (file,) = tmp_path.glob("*.json")
    strict = accelerate(model, numbers(4), **arguments)
    assert strict.plan.is_baseline
    (other,) = set(tmp_path.glob("*.json")) - {file}
    key = other.stem
    other.write_text(file.read_text().replace(file.stem, key))
    again = accelerate(model, numbers(4), **arguments)
    assert again.plan.is_baseline
    assert again.report.trials[-1].outcome is tfaccel.Outcome.UNFAITHFUL
