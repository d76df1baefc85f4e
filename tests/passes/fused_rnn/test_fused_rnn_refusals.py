"""Which recurrent layers keep Keras's own loop, and what is said of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from looping import (
    CPU,
    LAYERS,
    assert_close,
    built,
    compiled_calls,
    floats,
    inputs_of,
    numbers,
    traced,
    workload_of,
)

from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.explain.api import explain
from tfaccel.passes import FusedRNN
from tfaccel.system.device import Device

pytestmark = pytest.mark.usefixtures("unoptimised")
L = keras.layers


class OwnLoop(L.LSTM):
    def inner_loop(self, sequences, initial_state, mask, training=False):
        return super().inner_loop(sequences, initial_state, mask, training)


class OwnCell(L.GRUCell):
    def call(self, inputs, states, training=False):
        return super().call(inputs, states, training)


OBSTACLES = [
    (lambda: OwnLoop(2), Refusal.OWN_CODE, "`inner_loop`"),
    (lambda: L.RNN(OwnCell(2)), Refusal.OWN_CODE, "`call`"),
    (lambda: L.SimpleRNN(2), Refusal.CASE, "SimpleRNNCell"),
    (lambda: L.RNN([L.LSTMCell(2), L.LSTMCell(2)]), Refusal.CASE, "StackedRNNCells"),
    (lambda: L.LSTM(2, dtype="float64"), Refusal.DTYPE, "float64"),
    (lambda: L.LSTM(2, activation="relu"), Refusal.CASE, " activation"),
    (lambda: L.GRU(2, recurrent_activation="relu"), Refusal.CASE, "recurrent_activation"),
    (lambda: L.LSTM(2, recurrent_dropout=0.25), Refusal.CASE, "recurrent_dropout=0.25"),
    (lambda: L.RNN(L.LSTMCell(2, activity_regularizer="l2")), Refusal.CASE, "activity_regularizer"),
    (lambda: L.GRU(2, use_cudnn=True), Refusal.CASE, "use_cudnn=True"),
]


@pytest.mark.parametrize("make, refusal, named", OBSTACLES, ids=[row[-1] for row in OBSTACLES])
def test_what_keeps_keras_own_loop(make, refusal, named):
    layer = make()
    workload = workload_of(layer)
    (found,) = [o for item, o in FusedRNN().layers(workload) if item is layer]
    assert found.kind is refusal and named in found.cause and repr(layer.name) in found.cause
    assert FusedRNN().unsupported(workload) == found
    with FusedRNN().applied(StepContext(workload)):
        assert "inner_loop" not in vars(layer)


def test_one_layer_that_it_serves_is_enough():
    workload = workload_of(L.LSTM(2), L.SimpleRNN(2))
    assert FusedRNN().unsupported(workload) is None


def test_refusals():
    varying = (tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, 1]))
    workloads = {
        Refusal.NOTHING: workload_of(L.Dense(2)),
        Refusal.NO_USE: workload_of(L.LSTM(2), device=Device("GPU", "test")),
        Refusal.SIZES: workload_of(L.LSTM(2), element_spec=varying),
    }
    for refusal, workload in workloads.items():
        assert FusedRNN().unsupported(workload).kind is refusal


def test_the_length_that_keras_keeps_to_itself_can_be_said():
    """Windows of a time series are of one length, and the dataset does not say so."""
    x = np.zeros((20, 4), "float32")
    data = keras.utils.timeseries_dataset_from_array(x, x[:, :1], sequence_length=5, batch_size=4)
    found = FusedRNN().unsupported(workload_of(L.LSTM(2), element_spec=data.element_spec))
    assert found.kind is Refusal.SIZES and "tf.ensure_shape" in found.remedy
    data = data.map(lambda x, y: (tf.ensure_shape(x, (None, 5, 4)), y))
    data = data.map(lambda x, y: (x, tf.ensure_shape(y, (None, 1))))
    assert FusedRNN().unsupported(workload_of(L.LSTM(2), element_spec=data.element_spec)) is None


def test_several_replicas_are_refused(monkeypatch):
    monkeypatch.setattr(Workload, "num_replicas", 2)
    assert FusedRNN().unsupported(workload_of(L.LSTM(2))).kind is Refusal.REPLICAS


def test_an_unknown_number_of_steps_keeps_keras_own_loop(rng):
    own, layer = (built(LAYERS["lstm"][0], np.random.default_rng(1)) for _ in range(2))
    values = floats(inputs_of(rng, 0))
    fused = traced(layer, steps=None, fused=True)
    assert_close(numbers(fused, *values), numbers(traced(own), *values))
    calls, loops = compiled_calls(fused)
    assert calls == 0 and loops > 0


def test_explain_says_how_a_layer_runs():
    model = keras.Sequential([keras.Input((5, 3)), L.LSTM(2), L.Dense(1)])
    row = explain(model, device=CPU).rows[1]
    assert row.would["fused_rnn"] == "a loop that XLA compiles"
    row = explain(model, ["fused_rnn"], device=CPU).rows[1]
    assert row.runs_as == "a loop that XLA compiles, float32"
