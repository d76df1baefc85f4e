"""A step that can't run as it is written, and a pass that has it run."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early
from short_fits import Serving, assert_same, make_data, state

import tfaccel
from tfaccel.compat.patching import instance_attribute

layers = keras.layers


class Picky(layers.Layer):
    """Runs only where a pass makes it tolerant."""

    tolerant = False

    def call(self, x):
        most = np.float32(np.inf if self.tolerant else -np.inf)
        tf.debugging.assert_less_equal(tf.reduce_mean(x), most, "no such kernel")
        return x * 1.0


@dataclasses.dataclass(frozen=True)
class Rescuer(Serving):
    """Makes the step run."""

    name = "rescuer"

    def fallback_reason(self, error):
        return "this device has no such kernel" if "no such kernel" in str(error) else ""

    @contextlib.contextmanager
    def applied(self, context):
        layer = next(item for item in context.workload.layers if isinstance(item, Picky))
        with instance_attribute(layer, "tolerant", True):
            yield


def picky_model(tolerant=False, built=True):
    keras.utils.set_random_seed(4)
    picky = Picky()
    picky.tolerant = tolerant
    body = [layers.Dense(8), picky, layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *body] if built else body)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    return model


@pytest.mark.parametrize("built", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.parametrize("settings", [{"plan": ["rescuer"]}, {"includes": ["rescuer"]}])
def test_a_step_that_cannot_run_as_written_runs_under_the_pass_that_rescues_it(settings, built):
    data = make_data()
    fitting = data | {
        "epochs": 2,
        "shuffle": False,
        "validation_data": (data["x"][:16], data["y"][:16]),
    }
    accel = tfaccel.AccelCallback(**settings, cache_dir=False, verbose=0)
    model = picky_model(built=built)
    history = model.fit(**fitting, callbacks=[accel])
    expected = picky_model(tolerant=True, built=built)
    if built:
        built_early(expected)
    expected_history = expected.fit(**fitting)
    assert_same(state(model), state(expected))
    assert list(history.history.values()) == list(expected_history.history.values())
    assert accel.plan.names == ("rescuer",)


def test_a_step_that_nobody_rescues_fails_as_it_would_have():
    with pytest.raises(tf.errors.InvalidArgumentError, match="no such kernel"):
        picky_model().fit(**make_data(), callbacks=[tfaccel.AccelCallback(verbose=0)])


@pytest.mark.parametrize(
    "settings",
    [{"plan": ["rescuer"]}, pytest.param({"includes": ["rescuer"]}, marks=pytest.mark.slow)],
)
def test_tune_says_what_runs_where_the_own_step_cannot(settings):
    data = make_data()
    dataset = tf.data.Dataset.from_tensor_slices((data["x"], data["y"])).batch(16)
    report = tfaccel.tune(picky_model(), dataset, **settings, cache_dir=False, verbose=0)
    assert report.plan.names == ("rescuer",)
    assert "this device has no such kernel" in report.note
    with pytest.raises(tf.errors.InvalidArgumentError, match="no such kernel"):
        tfaccel.tune(picky_model(), dataset, ["fused_optimizer"], verbose=0)
