"""A plan's step of validation that fails in its graph: what it evaluated is evaluated again."""

import contextlib
import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.undoable_step import MOST_STEPS
from tfaccel.training.validation import Turn, Validation

BATCHES = 2 * MOST_STEPS + 3
ROWS = np.random.default_rng(4).normal(size=(8 * BATCHES - 3, 4)).astype("float32")
# Whether the plan's step fails.
FAILS = tf.Variable(False, trainable=False)


@dataclasses.dataclass(frozen=True)
class Failing(tfaccel.Pass):
    """Fails while `FAILS`, beside metrics that may have been moved on by then."""

    name = "failing_in_validation"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        compute = model.compute_metrics

        def failing(*args, **kwargs):
            found = compute(*args, **kwargs)
            # Not before the batch is there: what fails beside it may lose it.
            with tf.control_dependencies([*found.values()]):
                checked = tf.debugging.assert_equal(FAILS, False)
            with tf.control_dependencies([checked]):
                return {name: tf.identity(value) for name, value in found.items()}

        with instance_attribute(model, "compute_metrics", failing):
            yield


class FailAt(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_test_batch_begin(self, batch, logs=None):
        FAILS.assign(batch == self.batch)


def make_model(steps_per_execution=1):
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile("sgd", "mse", metrics=["mae"], steps_per_execution=steps_per_execution)
    return model


def data(order=1):
    return tf.data.Dataset.from_tensor_slices((order * ROWS, ROWS[:, :2])).batch(8)


def accelerated(model, holds=True):
    """The model's validation, and the built step that makes it."""
    plan = Plan((Failing(),))
    workload = Workload(model, element_spec=data().element_spec)
    validation = Validation(workload, plan, 2.0, None, lambda: 0.0)
    validation.install()
    validation.accelerate(build_step(workload, plan, kind="test", holds=holds))
    return validation


@pytest.fixture(autouse=True)
def _whole():
    yield
    FAILS.assign(False)


@pytest.mark.parametrize(
    ("batch", "holds", "steps_per_execution"),
    [
        (0, True, 1),
        (1, True, 1),
        (MOST_STEPS + 2, True, 1),
        (BATCHES - 1, True, 1),
        (0, False, 1),
        (7, False, 1),
        (6, False, 3),
    ],
)
def test_no_batch_is_lost_or_counted_twice(batch, holds, steps_per_execution):
    model = make_model(steps_per_execution)
    expected = model.evaluate(data(), verbose=0, return_dict=True)
    validation = accelerated(model, holds)
    with pytest.warns(UserWarning, match="leaves validation as it is"):
        found = model.evaluate(data(), verbose=0, return_dict=True, callbacks=[FailAt(batch)])
    assert found == pytest.approx(expected, rel=1e-5)
    assert validation.turn is Turn.ORIGINAL
    assert model.evaluate(data(), verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-6)
    validation.remove()


def test_validations_before_do_not_count():
    model = make_model()
    expected = model.evaluate(data(-1), verbose=0, return_dict=True)
    accelerated(model)
    for _ in range(2):
        model.evaluate(data(), verbose=0)
    with pytest.warns(UserWarning, match="leaves validation as it is"):
        found = model.evaluate(data(-1), verbose=0, return_dict=True, callbacks=[FailAt(2)])
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_batch_that_is_handed_over_is_the_users_own_steps():
    model = make_model()
    x, y = ROWS[:8], ROWS[:8, :2]
    expected = model.test_on_batch(x, y, return_dict=True)
    validation = accelerated(model)
    FAILS.assign(True)
    assert model.test_on_batch(x, y, return_dict=True) == pytest.approx(expected, rel=1e-5)
    assert validation.turn is Turn.ACCELERATED


def test_what_the_data_raises_is_the_users():
    def rows():
        yield from ROWS[:20]
        raise ZeroDivisionError("in the data")

    spec = tf.TensorSpec((4,), tf.float32)
    broken = tf.data.Dataset.from_generator(rows, output_signature=spec)
    model = make_model()
    validation = accelerated(model)
    with pytest.raises(tf.errors.OpError, match="in the data"):
        model.evaluate(broken.batch(8).map(lambda x: (x, x[:, :2])), verbose=0)
    assert validation.turn is Turn.ACCELERATED
