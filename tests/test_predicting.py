"""AcceleratedModel.predict for arrays: without Keras's loop, and with the same results."""

import re
import sys
import threading

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_engine import FakeEngine
from inference_models import COUNT, accelerate, assert_alike, image_model, numbers

import tfaccel
from tfaccel.compat import keras_private

layers = keras.layers
winning = inference_models.winning
PLANS = {"engine": ["fake_engine"], "plan": ["frozen_weights"], "baseline": "baseline"}
PLANNED = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(FakeEngine, "fails", False)
    monkeypatch.setattr(FakeEngine, "sizes", [])


@pytest.fixture
def loops(monkeypatch):
    """What was handed to Keras's loop."""
    made = []
    adapter = sys.modules[keras_private.trainer_class().__module__].TFEpochIterator
    own = adapter.__init__

    def noted(self, *args, **kwargs):
        made.append(kwargs)
        own(self, *args, **kwargs)

    monkeypatch.setattr(adapter, "__init__", noted)
    return made


def dense_model():
    return keras.Sequential([keras.Input((4,)), layers.Dense(2)])


@PLANNED
def test_arrays_take_the_short_way(plan, winning, loops):
    model, x = inference_models.several_inputs_and_outputs()
    fast = accelerate(model, x, plan)
    for size in (None, 5, 1):
        expected = model.predict(x, batch_size=size, verbose=0)
        loops.clear()
        assert_alike(expected, fast.predict(x, batch_size=size, verbose=0))
        assert not loops
    fast.predict(x, verbose=0, callbacks=[keras.callbacks.Callback()])
    fast.predict(x, verbose=0, steps=1)
    fast.predict(x, verbose=0, validate=True)
    assert len(loops) == 3


KINDS = {
    "float64": lambda x: x.astype("float64"),
    "float16": lambda x: x.astype("float16"),
    "integers": lambda x: (10 * x).astype("int64"),
    "bytes": lambda x: (10 * np.abs(x)).astype("uint8"),
    "tensor": tf.constant,
    "wide tensor": lambda x: tf.constant(x, tf.float64),
    "list": lambda x: [x],
    "tuple": lambda x: (x,),
    "other strides": lambda x: np.asfortranarray(x)[::-1],
    "dataset": lambda x: tf.data.Dataset.from_tensor_slices(x).batch(5),
}


@pytest.fixture(scope="module")
def dense():
    model = dense_model()
    return model, accelerate(model, numbers(4), "baseline")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_every_kind_of_input(kind, dense):
    (model, fast), given = dense, kind(numbers(4))
    usual = {} if isinstance(given, tf.data.Dataset) else {"batch_size": 5}
    assert_alike(model.predict(given, verbose=0, **usual), fast.predict(given, verbose=0, **usual))


class Uneven(layers.Layer):
    """Outputs that have other rows than the inputs, or none that are alike."""

    def call(self, inputs):
        size = tf.shape(inputs)[0]
        return {
            "square": tf.matmul(inputs, inputs, transpose_b=True),
            "sum": tf.reduce_sum(inputs),
            "twice": tf.concat([inputs, inputs], 0),
            "ragged": tf.RaggedTensor.from_tensor(inputs, lengths=tf.range(size) % 4),
            "words": tf.strings.as_string(inputs),
            "rows": inputs,
        }

    def compute_output_spec(self, inputs):
        raise NotImplementedError


class UnevenModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = Uneven()

    def call(self, inputs):
        return self.inner(inputs)


@pytest.mark.parametrize("size", [COUNT, 5])
def test_every_kind_of_output(size):
    model, x = UnevenModel(), numbers(4)
    fast = accelerate(model, x, "baseline")
    expected = model.predict(x, batch_size=size, verbose=0)
    found = fast.predict(x, batch_size=size, verbose=0)
    assert list(expected) == list(found)
    for name, one in expected.items():
        assert type(one) is type(found[name]), name
        if isinstance(one, tf.RaggedTensor):
            assert one.to_list() == found[name].to_list()
        else:
            np.testing.assert_array_equal(one, found[name], strict=True)


@pytest.mark.parametrize("verbose", ["auto", 0, 2])
def test_the_progress_bar_is_keras_own(verbose, dense, capsys):
    (model, fast), x = dense, numbers(4)

    def printed(predict):
        capsys.readouterr()
        predict(x, batch_size=5, verbose=verbose)
        lines = capsys.readouterr().out.replace("\b", "").replace("\r", "\n").split("\n")
        return [re.sub(r"\d+[mu]?s(/step)?", "time", line).strip() for line in lines]

    assert printed(fast.predict)[-2:] == printed(model.predict)[-2:]


def test_models_with_a_predict_of_their_own_keep_it():
    class Own(keras.Sequential):
        def predict(self, *args, **kwargs):
            return "mine"

    model = Own([keras.Input((4,)), layers.Dense(2)])
    assert accelerate(model, numbers(4), "baseline").predict(numbers(4)) == "mine"


def test_what_is_written_into_is_the_callers(winning):
    fast = accelerate(dense_model(), numbers(4), PLANS["engine"])
    first = fast.predict(numbers(4), batch_size=5, verbose=0)
    kept = first.copy()
    fast.predict(numbers(4, seed=3), batch_size=5, verbose=0)
    np.testing.assert_array_equal(first, kept)
    assert first.flags.writeable


@pytest.mark.parametrize("plan", [value for name, value in PLANS.items() if name != "baseline"])
def test_eight_threads(plan, winning):
    """Each has inputs and batches of its own, and the predict function stays the model's."""
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, plan)
    inputs = [np.roll(x, place, axis=0)[place:] for place in range(8)]
    expected = [model.predict(one, verbose=0) for one in inputs]
    before, found = model.predict_function, {}

    def run(place):
        found[place] = [
            fast.predict(inputs[place], batch_size=size, verbose=0) for size in (3, 5, 32)
        ]

    threads = [threading.Thread(target=run, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(8))
    for place, several in found.items():
        for one in several:
            assert_alike(expected[place], one, 1e-3, 1e-4)
    assert model.predict_function is before


def test_a_loaded_model_takes_the_short_way(winning, tmp_path):
    model, x = dense_model(), numbers(4)
    accelerate(model, x, PLANS["engine"]).save(tmp_path / "saved")
    loaded = tfaccel.load(tmp_path / "saved")
    expected = model.predict(x, verbose=0)
    FakeEngine.sizes.clear()
    assert_alike(expected, loaded.predict(x, batch_size=7, verbose=0))
    assert FakeEngine.sizes == [7, 5]
