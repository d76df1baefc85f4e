import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics
from tfaccel.measure.numerics import TOLERANCES, Drift, Observation, Tolerance, compare, widened
from tfaccel.steps.snapshot import Snapshot


def observation(**changes):
    values = {
        "losses": {"loss": np.float32(2.0)},
        "gradients": {"a/kernel": np.array([3.0, 4.0]), "b/kernel": np.array([0.6, 0.8])},
        "trained": {"a/kernel": np.array([1.0, 1.0])},
        "before": {"a/kernel": np.array([2.0, 2.0])},
        "state": {"norm/moving_mean": np.array([1.0, 0.0])},
        "state_before": {"norm/moving_mean": np.array([0.0, 0.0])},
        "counters": {"iteration": np.array(4)},
    }
    return Observation(**values | changes)


def test_no_drift_from_itself():
    drift = numerics.compare(observation(), observation())
    assert drift == Drift(cosine=pytest.approx(1.0))
    assert drift.violation(numerics.TOLERANCES["float64"]) is None


def test_gradient_errors_are_relative_to_the_variable():
    other = observation(
        gradients={"a/kernel": np.array([3.0, 4.0]), "b/kernel": np.array([0.6, 0.3])}
    )
    drift = numerics.compare(observation(), other)
    assert drift.variable == pytest.approx(0.5)
    assert drift.worst == "b/kernel"
    assert drift.gradient == pytest.approx(0.5 / np.sqrt(26))
    assert drift.cosine == pytest.approx((0.36 + 0.24) / np.sqrt(0.45))


def test_a_gradient_that_is_zero_but_for_rounding_is_measured_against_its_layer():
    def with_bias(value):
        return observation(
            gradients={"a/kernel": np.array([3.0, 4.0]), "a/bias": np.array([value])},
        )

    drift = numerics.compare(with_bias(1e-9), with_bias(-1e-3))
    assert drift.variable < 1e-3
    assert drift.cosine == pytest.approx(1.0)


def test_a_moving_mean_near_zero_is_measured_against_its_layer():
    before = {"norm/moving_mean": np.array([0.0]), "norm/moving_variance": np.array([1.0])}

    def with_mean(value):
        state = {"norm/moving_mean": np.array([value]), "norm/moving_variance": np.array([0.9])}
        return observation(state=state, state_before=before)

    assert numerics.compare(with_mean(1e-8), with_mean(-1e-8)).state < 1e-5
    assert numerics.compare(with_mean(1.0), with_mean(0.9)).state == pytest.approx(0.1)


def test_a_statistic_that_is_not_moved_on_is_seen_however_small_the_step():
    before = {"norm/moving_mean": np.array([1.0], "float32")}
    moved, stale = ({"norm/moving_mean": np.array([v], "float32")} for v in (1.0001, 1.0))
    pair = (observation(state=state, state_before=before) for state in (moved, stale))
    assert numerics.compare(*pair).state == pytest.approx(1.0)


def test_a_wrong_gradient_of_a_dead_layer_is_seen():
    dead = observation(gradients={"a/kernel": np.ones(2), "b/kernel": np.zeros(2)})
    wrong = observation(gradients={"a/kernel": np.ones(2), "b/kernel": np.ones(2)})
    assert numerics.compare(dead, wrong).variable > 100


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"losses": {"loss": np.float32(3.0)}}, "loss"),
        ({"trained": {"a/kernel": np.array([1.0, 1.1])}}, "update"),
        ({"state": {"norm/moving_mean": np.array([1.0, 0.5])}}, "state"),
        ({"counters": {"iteration": np.array(5)}}, "update"),
    ],
)
@pytest.mark.parametrize("dtype", numerics.TOLERANCES)
def test_each_kind_of_mistake_breaks_a_bound(changes, name, dtype):
    drift = numerics.compare(observation(), observation(**changes))
    assert drift.violation(numerics.TOLERANCES[dtype]).startswith(name)


@pytest.mark.parametrize("dtype", numerics.TOLERANCES)
@pytest.mark.parametrize("mistake", ["sign", "scale", "missing term", "axis"])
def test_a_mistaken_gradient_breaks_every_dtype_s_bound(rng, mistake, dtype):
    right = rng.normal(size=(8, 8))
    wrong = {
        "sign": -right,
        "scale": 2 * right,
        "missing term": right * (np.arange(8) < 4),
        "axis": right.T,
    }[mistake]
    pair = [observation(gradients={"a/kernel": g, "b/kernel": np.ones(2)}) for g in (right, wrong)]
    assert numerics.compare(*pair).violation(numerics.TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_rounding_of_the_dtype_itself_is_allowed(rng, dtype):
    roundoff = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}[dtype]
    right = rng.normal(size=1000)
    rounded = right * (1 + roundoff * rng.uniform(-1, 1, size=1000))
    pair = [
        observation(gradients={"a/kernel": g, "b/kernel": np.ones(2)}) for g in (right, rounded)
    ]
    assert numerics.compare(*pair).violation(numerics.TOLERANCES[dtype]) is None


def test_non_finite_values():
    bad = observation(losses={"loss": np.float32(np.nan)})
    assert "not finite" in numerics.compare(observation(), bad).violation(
        numerics.TOLERANCES["bfloat16"]
    )
    # Where the untouched step gives NaN as well, the plan is not to blame.
    assert numerics.compare(bad, bad).violation(numerics.TOLERANCES["float32"]) is None
    half = observation(gradients={"a/kernel": np.array([np.inf, 4.0]), "b/kernel": np.ones(2)})
    assert numerics.compare(observation(), half).finite is False


def test_tolerance_arguments():
    assert numerics.as_tolerance(None, "bfloat16") is numerics.TOLERANCES["bfloat16"]
    own = Tolerance(gradient=0.1, variable=0.1, cosine=0.9, loss=0.1)
    assert numerics.as_tolerance(own, "float32") is own
    assert numerics.as_tolerance(0.01, "bfloat16").variable == 0.01
    for bad in (0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=r"`tolerance` must be positive.*Received"):
            numerics.as_tolerance(bad, "float32")
    for bad in ("tight", True, [0.1]):
        with pytest.raises(TypeError, match=r"`tolerance` must be.*Received"):
            numerics.as_tolerance(bad, "float32")


def test_widened_by_the_drift_between_seeds():
    seeds = Drift(gradient=0.4, variable=0.8, cosine=0.7, loss=0.1, state=0.2, output=0.2)
    wide = numerics.widened(numerics.TOLERANCES["float32"], seeds)
    assert dataclasses.astuple(wide) == pytest.approx((0.6, 1.2, 0.55, 0.15, 1e-4, 0.3, 0.3))


def test_widened_by_roundings():
    """Four times the own drift, as long as that is less than 16 bits would make."""
    roundings = Drift(0.01, variable=0.02, cosine=0.9999, loss=1e-4, state=2e-3, output=1e-3)
    wide = numerics.widened(numerics.TOLERANCES["float32"], roundings)
    assert dataclasses.astuple(wide) == pytest.approx((0.04, 0.08, 0.998, 4e-4, 1e-4, 1e-2, 4e-3))
    more = Drift(gradient=0.1, variable=0.2, cosine=0.99, loss=0.01, state=0.02)
    wide = numerics.widened(numerics.TOLERANCES["float32"], more)
    assert dataclasses.astuple(wide) == pytest.approx((0.25, 0.6, 0.84, 0.03, 1e-4, 0.05, 1e-4))


@dataclasses.dataclass(frozen=True)
class Scaled(tfaccel.Pass):
    """The first layer's outputs are off by a factor."""

    name = "scaled"
    factor: float = 1.0

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        layer = context.workload.model.layers[0]
        call = layer.call
        scaled = lambda x, **keywords: call(x, **keywords) * self.factor  # noqa: E731
        with instance_attribute(layer, "call", scaled):
            yield


@pytest.mark.parametrize(
    "amplifies, factor, accepted",
    [(1.0, 1 + 2**-21, True), (1.0, 1.03, False), (1e5, 1 + 2**-21, True), (1e5, 1.03, False)],
)
def test_what_a_net_makes_of_rounding_is_no_mistake_of_a_plan(amplifies, factor, accepted, rng):
    waves = keras.layers.Lambda(lambda x: tf.sin(amplifies * x) / amplifies)
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(64), waves])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    x = rng.normal(size=(32, 5)).astype("float32")
    workload = Workload(model, batches=((tf.constant(x), tf.zeros((32, 64))),))
    probe = StepRecorder(workload, Snapshot.of(workload))
    reference = probe.observe(Plan())
    drift = compare(reference, probe.observe(Plan((Scaled(factor),)), reference))
    own = compare(reference, probe.near())
    tolerance = TOLERANCES["float32"]
    assert bool(drift.violation(tolerance)) is (amplifies > 1 or not accepted)
    assert bool(drift.violation(widened(tolerance, own))) is not accepted
