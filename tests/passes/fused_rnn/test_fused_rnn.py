"""FusedRNN against Keras's own layers, which are the plain reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early
from looping import (
    BATCH,
    CPU,
    FEATURES,
    LAYERS,
    STEPS,
    TWO_CORES,
    UNITS,
    assert_close,
    built,
    compiled_calls,
    floats,
    inputs_of,
    numbers,
    traced,
    workload_of,
)

import tfaccel
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes import FusedRNN, MixedPrecision
from tfaccel.system.device import Device

pytestmark = pytest.mark.usefixtures("unoptimised")
L = keras.layers


# What masks can be got wrong in: each cell, both ways of showing a masked step, both directions.
MASKED = [
    "lstm",
    "lstm backwards with states",
    "lstm unrolled",
    "lstm, zeros for masked",
    "gru",
    "gru reset before",
    "bidirectional",
]


# How Bidirectional merges is Keras's own code, and a bias is left out of one cell as of another;
# so is a cell in an RNN. Which of its ways Keras computes by is not seen in what it computes.
SLOW = {
    "lstm sequences",
    "lstm backwards with states",  # a Bidirectional has one that goes backwards, a GRU has states
    "lstm unrolled",
    "lstm, separate gates",
    "subclass",
    "lstm without bias",
    "rnn of a gru cell",
    "bidirectional sum",
    "bidirectional mul",
    "bidirectional pair",
    "gru reset before, without bias",
}


# Quick without a mask is the one that meets the one loop, as all do then.
ONE_LOOP = "lstm"
CELLS = ("lstm", "gru")
CASES = [
    pytest.param(
        name,
        masked,
        marks=pytest.mark.slow
        if name in SLOW or (not masked and name in MASKED and name != ONE_LOOP)
        else (),
    )
    for masked, names in ((False, LAYERS), (True, MASKED))
    for name in names
]


MASK = np.array(
    [
        [True, True, True, False, False],  # padded on the right
        [False, True, False, True, True],  # on the left, and in between
        [False] * STEPS,
    ]
)


@pytest.mark.parametrize("name, masked", CASES)
def test_agrees_with_keras_in_float64(name, masked, rng):
    make, states = LAYERS[name]
    seed = rng.integers(1000)
    mask = tf.constant(MASK) if masked else None
    own = built(make, np.random.default_rng(seed), dtype="float64")
    layer = built(make, np.random.default_rng(seed))
    values = inputs_of(rng, states)
    plain = traced(own, states, "float64", mask=mask)
    # Without a mask one loop over the whole batch; of each cell one with a loop for each core.
    device = TWO_CORES if masked and name in CELLS else CPU
    fused = traced(layer, states, mask=mask, fused=True, device=device)
    assert_close(numbers(fused, *floats(values)), numbers(plain, *values))
    loops = device.cores * (2 if name.startswith("bidirectional") else 1)
    assert compiled_calls(fused) == (2 * loops, 0)


@pytest.mark.parametrize(
    "make",
    [
        # The laws train one.
        pytest.param(lambda: L.LSTM(UNITS, dropout=0.5, seed=3), marks=pytest.mark.slow),
        # With use_cudnn="auto" Keras 3.15 fails on a mask for each gate.
        lambda: L.GRU(UNITS, dropout=0.5, seed=3, implementation=1, use_cudnn=False),
    ],
    ids=["one mask", "a mask for each gate"],
)
def test_dropout_is_keras_own(make, rng):
    """The same masks from the same seed, two steps in a row, and none outside of training."""
    seed = rng.integers(1000)
    own, layer = (built(make, np.random.default_rng(seed)) for _ in range(2))
    x = floats(inputs_of(rng, 0))
    plain, fused = traced(own, training=True), traced(layer, training=True, fused=True)
    first, second = numbers(fused, *x), numbers(fused, *x)
    assert_close(first, numbers(plain, *x))
    assert_close(second, numbers(plain, *x))
    assert np.abs(first[0] - second[0]).max() > 1e-3
    # A layer outside of training advances its seed generator as well.
    inference = traced(layer, training=False, fused=True), traced(own, training=False)
    assert_close(*(numbers(function, *x) for function in inference))


@pytest.mark.parametrize("name", ["lstm sequences", pytest.param("gru", marks=pytest.mark.slow)])
def test_any_number_of_samples(name, rng):
    make, states = LAYERS[name]
    own, layer = (built(make, np.random.default_rng(1)) for _ in range(2))
    plain = traced(own, states)
    fused = traced(layer, states, fused=True, device=TWO_CORES)
    for batch in (0, 1):
        values = floats(inputs_of(rng, states, batch=batch))
        assert_close(numbers(fused, *values), numbers(plain, *values))


@pytest.mark.parametrize(
    "cores, rows, units, loops",
    [
        (1, 64, 2, 1),
        (4, 64, 2, 4),
        (8, 24, 2, 3),  # no fewer than 8 samples in each part
        (8, 7, 2, 1),
        (8, None, 2, 4),  # as if it were Keras's usual batch, 32
        (4, 64, 1024, 1),  # reading large weights once for each part would cost more
    ],
)
def test_a_loop_for_each_core(cores, rows, units, loops, rng):
    layer = L.LSTM(units)
    layer.build((None, STEPS, FEATURES))
    batches = () if rows is None else (tf.zeros([rows, STEPS, FEATURES]),)
    workload = workload_of(layer, device=Device("CPU", "test", cores=cores), batches=batches)
    with FusedRNN().applied(StepContext(workload)):
        function = tf.function(layer).get_concrete_function(tf.TensorSpec([None, STEPS, FEATURES]))
    assert compiled_calls(function) == (loops, 0)


def test_a_known_number_of_samples_stays_known(rng):
    layer = built(LAYERS["gru"][0], rng)
    with FusedRNN().applied(StepContext(workload_of(layer, device=TWO_CORES))):
        function = tf.function(layer).get_concrete_function(tf.TensorSpec([BATCH, STEPS, FEATURES]))
    shapes = [tuple(output.shape) for output in function.outputs]
    assert shapes == [(BATCH, STEPS, UNITS), (BATCH, UNITS)]


def test_one_time_step(rng):
    own, layer = (
        built(LAYERS["lstm"][0], np.random.default_rng(1), (None, 1, FEATURES)) for _ in range(2)
    )
    values = floats(inputs_of(rng, 0, steps=1))
    fused = traced(layer, steps=1, fused=True)
    assert_close(numbers(fused, *values), numbers(traced(own, steps=1), *values))
    assert compiled_calls(fused)[0] == 2


def test_stateful_layers_go_on_from_call_to_call(rng):
    shape = (BATCH, STEPS, FEATURES)
    own, layer = (
        built(lambda: L.LSTM(UNITS, stateful=True), np.random.default_rng(1), shape)
        for _ in range(2)
    )
    x = floats(inputs_of(rng, 0))
    plain, fused = traced(own), traced(layer, fused=True, device=TWO_CORES)
    before = numbers(fused, *x)
    assert_close(before, numbers(plain, *x))
    after = numbers(fused, *x)
    assert_close(after, numbers(plain, *x))
    assert np.abs(after[0] - before[0]).max() > 1e-3
    assert_close([s.numpy() for s in layer.states], [s.numpy() for s in own.states])


@pytest.mark.parametrize("dtype", ["bfloat16", pytest.param("float16", marks=pytest.mark.slow)])
def test_16_bits_lose_no_more_than_keras(dtype, rng):
    """Against float32: the recurrence is in float32, so the error is the smaller one."""
    make, states = LAYERS["gru"]
    exact = built(make, np.random.default_rng(1))
    own, layer = (
        built(make, np.random.default_rng(1), dtype=keras.DTypePolicy(f"mixed_{dtype}"))
        for _ in range(2)
    )
    values = [tf.cast(value, dtype) for value in inputs_of(rng, states)]
    reference = numbers(traced(exact, states), *(tf.cast(v, tf.float32) for v in values))
    fused = traced(layer, states, dtype, fused=True)
    assert {t.dtype for t in fused.outputs[:2]} == {tf.as_dtype(dtype)}
    errors = [
        sum(np.abs(a - e).sum() for a, e in zip(numbers(function, *values), reference, strict=True))
        for function in (fused, traced(own, states, dtype))
    ]
    assert 0 < errors[0] <= errors[1]


# Two states, two weights. The laws have another LSTM.
@pytest.mark.parametrize("name", [pytest.param("lstm sequences", marks=pytest.mark.slow), "gru"])
def test_gradients_of_gradients(name, rng):
    """A gradient penalty, with a mask: derivatives of all inputs, states and weights."""
    make, states = LAYERS[name]

    def penalty_of(layer):
        trained = [weight.value for weight in layer.trainable_weights]

        @tf.function(autograph=False)
        def penalty(x, *initial):
            sources = [x, *initial, *trained]
            with tf.GradientTape() as outer:
                outer.watch(sources)
                with tf.GradientTape() as inner:
                    inner.watch(sources)
                    outputs = layer(x, initial_state=initial, mask=tf.constant(MASK))
                    loss = tf.add_n([tf.reduce_sum(tf.sin(y)) for y in tf.nest.flatten(outputs)])
                first = inner.gradient(loss, sources)
                total = tf.add_n([tf.reduce_sum(gradient**2) for gradient in first])
            return outer.gradient(total, sources)

        return penalty

    own, layer = (built(make, np.random.default_rng(1)) for _ in range(2))
    values = floats(inputs_of(rng, states))
    expected = numbers(penalty_of(own), *values)
    with FusedRNN().applied(StepContext(workload_of(layer))):
        actual = numbers(penalty_of(layer), *values)
    assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_step_that_xla_compiles(rng):
    """With jit_compile=True the loops become part of the step."""
    make, states = LAYERS["lstm sequences"]
    own, layer = (built(make, np.random.default_rng(1)) for _ in range(2))
    values = floats(inputs_of(rng, states))
    fused = traced(layer, states, fused=True, device=TWO_CORES)
    whole = tf.function(fused, jit_compile=True)
    assert_close(numbers(whole, *values), numbers(traced(own, states), *values))


def speech_model():
    keras.utils.set_random_seed(4)
    model = keras.Sequential(
        [
            keras.Input((6, 3)),
            L.GRU(3, kernel_constraint="max_norm", recurrent_regularizer="l2", dropout=0.2),
            L.Dense(2, activation="softmax"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "sparse_categorical_crossentropy")
    return model


def losses(model, rng, *callbacks):
    if not callbacks:
        built_early(model)
    x, y = rng.normal(size=(22, 6, 3)).astype("float32"), rng.integers(0, 2, 22)
    # 22 samples: the last batch is a partial one.
    fitted = model.fit(
        x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x, y), callbacks=list(callbacks)
    )
    return [fitted.history["loss"], fitted.history["val_loss"], *model.get_weights()]


@pytest.mark.slow
def test_a_fit_is_the_same_fit(rng):
    """The laws have one of an LSTM."""
    seed = rng.integers(1000)
    stock = losses(speech_model(), np.random.default_rng(seed))
    accel = tfaccel.AccelCallback(["fused_rnn"], verbose=0)
    model = speech_model()
    assert_close(losses(model, np.random.default_rng(seed), accel), stock, rtol=1e-4, atol=1e-5)
    assert accel.plan.names == ("fused_rnn",)
    assert not any("inner_loop" in vars(layer) for layer in Workload(model).layers)


def test_under_mixed_precision_the_inputs_meet_16_bit_weights(rng):
    layer = built(LAYERS["lstm"][0], rng)
    plan = Plan((MixedPrecision("bfloat16"), FusedRNN()))
    model = keras.Sequential([layer, L.Dense(1)])
    model.build((None, STEPS, FEATURES))
    with plan.applied(StepContext(Workload(model, device=CPU))):
        function = tf.function(model).get_concrete_function(tf.TensorSpec([None, STEPS, FEATURES]))
    products = [op for op in function.graph.get_operations() if op.type == "MatMul"]
    assert products[0].inputs[0].dtype == tf.bfloat16
    assert compiled_calls(function)[0] == 1
