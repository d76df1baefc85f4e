"""Traced steps show the same of a plan as steps that are traced once more to be looked at."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, optimizers

import tfaccel
from tfaccel import Plan
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.comparison.traced_observer import TracedObserver
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.workload import Workload
from tfaccel.measure.numerics import TOLERANCES, compare
from tfaccel.passes import XLA, FusedNorm, FusedOptimizer, MixedPrecision
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.snapshot import Snapshot, build_optimizer

OPTIMIZERS = {
    "sgd": lambda: optimizers.SGD(0.01),
    "momentum": lambda: optimizers.SGD(0.01, momentum=0.9),
    "nesterov": lambda: optimizers.SGD(0.01, momentum=0.9, nesterov=True),
    "adam": lambda: optimizers.Adam(),
    "scheduled": lambda: optimizers.Adam(optimizers.schedules.CosineDecay(1e-3, 100)),
    "adamw": lambda: optimizers.AdamW(weight_decay=0.1),
    "nadam": lambda: optimizers.Nadam(),
    "adamax": lambda: optimizers.Adamax(),
    "lion": lambda: optimizers.Lion(),
}
HIDING = {
    "rmsprop": lambda: optimizers.RMSprop(),
    "clipped": lambda: optimizers.Adam(clipnorm=1.0),
    "accumulated": lambda: optimizers.Adam(gradient_accumulation_steps=2),
    "scaled": lambda: optimizers.LossScaleOptimizer(optimizers.Adam()),
    "scheduled": lambda: optimizers.SGD(optimizers.schedules.CosineDecay(1e-3, 100)),
}


def normalized():
    return [keras.Input((6,)), layers.Dense(8), layers.BatchNormalization(), layers.ReLU()]


def embedded():
    return [keras.Input((6,), dtype="int32"), layers.Embedding(5, 4), layers.Flatten()]


def random():
    return [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dropout(0.5)]


class Looked:
    """A model whose steps are looked at in both ways."""

    def __init__(self, net, optimizer):
        keras.utils.set_random_seed(0)
        parts = net()
        model = keras.Sequential([*parts, layers.Dense(3)])
        model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        build_optimizer(model)
        rng = np.random.default_rng(0)
        is_text = parts[0].dtype == "int32"
        x = rng.integers(0, 5, (32, 6)) if is_text else rng.normal(size=(32, 6))
        x = x.astype(parts[0].dtype)
        data = tf.data.Dataset.from_tensor_slices((x, rng.integers(0, 3, 32))).batch(16)
        self.workload = Workload(model, tuple(data), data.element_spec)
        self.snapshot = Snapshot.of(self.workload)
        self.traced = TracedObserver(self.workload, self.snapshot, self.step)
        self.recorder = StepRecorder(self.workload, self.snapshot)

    def step(self, plan):
        return build_step(self.workload, plan, on_trace=self.snapshot.include_graph)

    def drifts(self, plan):
        """How far a step under the plan is, by traced steps and by recorded ones."""
        for observer in (self.traced, self.recorder):
            reference = observer.observe(Plan())
            yield compare(reference, observer.observe(plan, reference))


def scaled(gradient):
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(1.1 * gradient.values, gradient.indices, gradient.dense_shape)
    return 1.1 * gradient


@dataclasses.dataclass(frozen=True)
class Mistaken(tfaccel.Pass):
    """A step with a mistake in it."""

    name = "mistaken"
    kind: str = "gradient"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        optimizer = context.workload.model.optimizer
        apply, update = optimizer.apply, optimizer.update_step

        def scaled_apply(grads, variables=None):
            return apply([scaled(grads[0]), *grads[1:]], variables)

        def larger_steps(gradient, variable, rate):
            return update(gradient, variable, 1.1 * rate)

        name, mistake = {
            "gradient": ("apply", scaled_apply),
            "update": ("update_step", larger_steps),
        }[self.kind]
        with instance_attribute(optimizer, name, mistake):
            yield


# Their slots are kept and put back as those of the others.
SLOW_OPTIMIZERS = ("adam", "adamax", "lion", "nadam", "nesterov", "scheduled")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in SLOW_OPTIMIZERS else ())
        for name in OPTIMIZERS
    ],
)
def test_a_faithful_step_is_seen_as_one(name):
    looked = Looked(normalized, OPTIMIZERS[name]())
    plan = Plan((FusedNorm(), FusedOptimizer()) if name != "lion" else (FusedNorm(),))
    assert looked.traced.serves(plan)
    traced, recorded = looked.drifts(plan)
    assert traced.violation(TOLERANCES["float32"]) is None
    assert traced.gradient == pytest.approx(recorded.gradient, abs=1e-5)
    assert traced.state == pytest.approx(recorded.state, abs=1e-6)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("sgd", "gradient"), ("momentum", "update"), ("adamw", "gradient"), ("adamw", "update")],
)
def test_a_mistake_is_seen(name, kind):
    looked = Looked(normalized, OPTIMIZERS[name]())
    reference = looked.traced.observe(Plan())
    seen = looked.traced.observe(Plan((Mistaken(kind),)), reference)
    assert compare(reference, seen).violation(TOLERANCES["float32"]) is not None


@pytest.mark.parametrize("kind", ["gradient", "update", None])
def test_sparse_gradients_are_compared(kind):
    looked = Looked(embedded, "adam")
    reference = looked.traced.observe(Plan())
    plan = Plan((Mistaken(kind),)) if kind else Plan((FusedOptimizer(),))
    found = compare(reference, looked.traced.observe(plan, reference))
    assert (found.violation(TOLERANCES["float32"]) is None) is (kind is None)


def test_the_same_random_numbers_are_drawn():
    looked = Looked(random, "adam")
    plan = Plan((FusedOptimizer(),))
    assert looked.traced.serves(plan)
    assert next(looked.drifts(plan)).violation(TOLERANCES["float32"]) is None


def test_the_same_random_numbers_are_drawn_in_16_bits():
    looked = Looked(random, "adam")
    plan = Plan((MixedPrecision(dtype="bfloat16"),))
    assert looked.traced.serves(plan)
    # Other numbers would make other gradients altogether.
    assert next(looked.drifts(plan)).gradient < 0.3


def test_a_plan_that_draws_other_numbers_is_left_to_the_recorder():
    plan = Plan((XLA(),))
    assert not Looked(random, "adam").traced.serves(plan)
    assert Looked(normalized, "adam").traced.serves(plan)


@pytest.mark.parametrize("name", HIDING)
def test_optimizers_that_hide_gradients_are_left_to_the_recorder(name):
    assert not Looked(normalized, HIDING[name]()).traced.serves(Plan((FusedNorm(),)))


def test_everything_is_put_back():
    looked = Looked(normalized, "sgd")
    before = [np.array(v) for v in looked.workload.model.variables]
    rate = float(looked.workload.model.optimizer.learning_rate)
    list(looked.drifts(Plan((FusedNorm(),))))
    yardsticks = looked.traced.near("bfloat16"), looked.traced.other()
    assert not any(one.trained or one.before for one in yardsticks)
    for old, new in zip(before, looked.workload.model.variables, strict=True):
        np.testing.assert_array_equal(old, new)
    assert float(looked.workload.model.optimizer.learning_rate) == rate
