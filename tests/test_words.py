"""Engines for models that read strings: split at the first layer that needs none."""

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from fake_engine import FakeEngine
from inference_models import COUNT, accelerate, assert_alike, numbers

import tfaccel
from tfaccel.core.unsupported import Refusal
from tfaccel.inference.engines import ENGINES

layers = keras.layers
winning = inference_models.winning
KINDS = [FakeEngine, *ENGINES]
WORDS = tf.constant([["yes", "no"], ["left", "what"]] * (COUNT // 2))
TEXTS = tf.constant([["a good film"], ["not so good a film"], ["bad"]] * (COUNT // 3))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(FakeEngine, "fails", False)
    monkeypatch.setattr(FakeEngine, "sizes", [])


def texts():
    vectorize = layers.TextVectorization(output_sequence_length=6, vocabulary=["good", "bad", "a"])
    inputs = keras.Input((1,), dtype="string")
    x = layers.Embedding(6, 4, mask_zero=True)(vectorize(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x))), TEXTS


def words_and_numbers():
    words, more = keras.Input((2,), dtype="string", name="words"), keras.Input((3,), name="more")
    hashed = layers.Hashing(7)(words)
    x = layers.Flatten()(layers.Embedding(7, 3)(hashed))
    x = layers.Concatenate()([x, layers.Dense(4, activation="relu")(more), more + 1.0])
    outputs = {"u": layers.Dense(2)(x), "v": layers.Dense(1)(more)}
    return keras.Model({"words": words, "more": more}, outputs), {
        "words": WORDS,
        "more": tf.constant(numbers(3)),
    }


def sequential():
    lookup = layers.StringLookup(vocabulary=["yes", "no", "left"], output_mode="multi_hot")
    return keras.Sequential([keras.Input((2,), dtype="string"), lookup, layers.Dense(3)]), WORDS


MAKERS = [texts, words_and_numbers, sequential]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_rest_goes_to_the_engine(kind, make, winning):
    pytest.importorskip(kind.module, reason=f"the extra {kind.extra} is not installed")
    model, x = make()
    before = [layer.name for layer in model.layers]
    fast = accelerate(model, x, [kind.name])
    assert fast.plan.names == (kind.name,), fast.report.reasons()
    FakeEngine.sizes.clear()
    expected = model.predict(x, batch_size=5, verbose=0)
    assert_alike(expected, fast.predict(x, batch_size=5, verbose=0), 1e-4, 1e-4)
    if kind is FakeEngine:
        assert FakeEngine.sizes == [5, 5, 2]
    assert [layer.name for layer in model.layers] == before


def test_refreshing_takes_the_present_weights(winning):
    model, x = sequential()
    fast = accelerate(model, x, ["fake_engine"])
    model.layers[-1].kernel.assign_add(np.ones(model.layers[-1].kernel.shape))
    fast.refresh()
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    assert fast.plan.names == ("fake_engine",)


def test_8_bits_are_calibrated_on_the_numbers(winning):
    model, x = sequential()
    y = model.predict(x, verbose=0).argmax(-1)
    engine = FakeEngine(precision="int8")
    FakeEngine.calibrated.clear()
    fast = accelerate(model, x, [engine], y=y, allow=("int8",), batch_size=4)
    assert fast.plan.passes == (engine,), fast.report.reasons()
    (eight_bits,) = FakeEngine.calibrated
    assert eight_bits.inputs[0].shape == (COUNT, 4)
    assert fast.report.trials[1].metric == 1.0


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_both_halves_are_saved(kind, make, winning, tmp_path):
    pytest.importorskip(kind.module, reason=f"the extra {kind.extra} is not installed")
    model, x = make()
    accelerate(model, x, [kind.name]).save(tmp_path / "saved")
    loaded = tfaccel.load(tmp_path / "saved")
    assert loaded.plan.names == (kind.name,)
    expected = model.predict(x, batch_size=5, verbose=0)
    assert_alike(expected, loaded.predict(x, batch_size=5, verbose=0), 1e-4, 1e-4)
    some = tf.nest.map_structure(lambda leaf: leaf[:3], x)
    found = tf.nest.map_structure(np.asarray, loaded(some))
    assert_alike(model.predict(some, verbose=0), found, 1e-4, 1e-4)


def test_half_of_what_was_saved_is_refused(winning, tmp_path):
    model, x = sequential()
    accelerate(model, x, ["fake_engine"]).save(tmp_path / "saved")
    (tmp_path / "saved/words/saved_model/saved_model.pb").unlink()
    with pytest.raises(ValueError, match="damaged: words/saved_model/saved_model.pb is missing"):
        tfaccel.load(tmp_path / "saved")


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.lookup = layers.StringLookup(vocabulary=["yes", "no"], output_mode="multi_hot")
        self.head = layers.Dense(2)

    def call(self, inputs):
        return self.head(self.lookup(inputs))


def words_out():
    inputs = keras.Input((2,), dtype="string")
    lookup = layers.StringLookup(vocabulary=["yes", "no"])
    return keras.Model(
        inputs, [lookup(inputs), layers.Dense(2)(keras.ops.cast(lookup(inputs), "float32"))]
    )


@pytest.mark.parametrize(
    ("make", "refusal"), [(Own, Refusal.OWN_CODE), (words_out, Refusal.INPUTS)]
)
def test_what_can_not_be_split_is_told(make, refusal, winning):
    model = make()
    fast = accelerate(model, WORDS, ["fake_engine"])
    assert fast.report.trials[1].refusal is refusal
    assert_alike(model.predict(WORDS, verbose=0), fast.predict(WORDS, verbose=0))
