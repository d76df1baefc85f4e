"""FusedRNN against Keras's own layers, which are the plain reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early

import tfaccel
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.explain.api import explain
from tfaccel.passes import FusedRNN, MixedPrecision
from tfaccel.system.device import Device

pytestmark = pytest.mark.usefixtures("unoptimised")
L = keras.layers
CPU, TWO_CORES = Device("CPU", "test"), Device("CPU", "test", cores=2)
BATCH, STEPS, FEATURES, UNITS = 3, 5, 4, 2
# Sums run in another order than Keras's, in float32.
CLOSE = {"rtol": 2e-5, "atol": 2e-6}


class Plain(L.LSTM):
    """A subclass that overrides nothing of the maths."""


# The layer, and how many initial states it is given.
LAYERS = {
    "lstm": (lambda **k: L.LSTM(UNITS, **k), 0),
    "lstm sequences": (lambda **k: L.LSTM(UNITS, return_sequences=True, **k), 2),
    "lstm backwards with states": (
        lambda **k: L.LSTM(UNITS, return_sequences=True, return_state=True, go_backwards=True, **k),
        2,
    ),
    "lstm without bias": (lambda **k: L.LSTM(UNITS, use_bias=False, return_state=True, **k), 0),
    "lstm unrolled": (lambda **k: L.LSTM(UNITS, unroll=True, return_sequences=True, **k), 0),
    "lstm, separate gates": (lambda **k: L.LSTM(UNITS, implementation=1, **k), 2),
    "lstm, zeros for masked": (
        lambda **k: L.LSTM(UNITS, return_sequences=True, zero_output_for_mask=True, **k),
        0,
    ),
    "subclass": (lambda **k: Plain(UNITS, **k), 0),
    "gru": (lambda **k: L.GRU(UNITS, return_sequences=True, return_state=True, **k), 1),
    "gru without bias": (lambda **k: L.GRU(UNITS, use_bias=False, go_backwards=True, **k), 0),
    "gru reset before": (
        lambda **k: L.GRU(UNITS, reset_after=False, return_sequences=True, **k),
        1,
    ),
    "gru reset before, without bias": (
        lambda **k: L.GRU(UNITS, reset_after=False, use_bias=False, return_state=True, **k),
        0,
    ),
    "rnn of a cell": (lambda **k: L.RNN(L.LSTMCell(UNITS, **k), return_sequences=True, **k), 2),
    "rnn of a gru cell": (lambda **k: L.RNN(L.GRUCell(UNITS, **k), return_state=True, **k), 1),
    "bidirectional": (
        lambda **k: L.Bidirectional(L.LSTM(UNITS, return_sequences=True, **k), **k),
        4,
    ),
    "bidirectional sum": (lambda **k: L.Bidirectional(L.GRU(UNITS, **k), "sum", **k), 0),
    "bidirectional mul": (
        lambda **k: L.Bidirectional(L.LSTM(UNITS, return_state=True, **k), "mul", **k),
        0,
    ),
    "bidirectional pair": (
        lambda **k: L.Bidirectional(L.GRU(UNITS, return_sequences=True, **k), None, **k),
        0,
    ),
}
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
# so is a cell in an RNN.
SLOW = {
    "lstm without bias",
    "rnn of a gru cell",
    "bidirectional sum",
    "bidirectional mul",
    "bidirectional pair",
    "gru reset before, without bias",
}
# Quick without a mask is the one that meets the one loop, as all do then.
ONE_LOOP = "lstm"
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


def workload_of(*layers, device=CPU, **kwargs):
    model = keras.Model()
    model.parts = list(layers)
    return Workload(model, device=device, **kwargs)


def built(make, rng, shape=(None, STEPS, FEATURES), **kwargs):
    """A layer with weights that are not their defaults; the same ones for the same `rng`."""
    layer = make(**kwargs)
    layer.build(shape)
    for weight in layer.trainable_weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5)
    return layer


def traced(layer, states=0, dtype="float32", steps=STEPS, fused=False, device=CPU, **kwargs):
    """A function of inputs, initial states and weights: the outputs and all gradients."""
    trained = [weight.value for weight in layer.trainable_weights]
    spec = [tf.TensorSpec([None, steps, FEATURES], dtype)]
    spec += [tf.TensorSpec([None, UNITS], dtype)] * states

    @tf.function(input_signature=spec, autograph=False)
    def run(x, *initial):
        with tf.GradientTape() as tape:
            tape.watch([x, *initial])
            outputs = tf.nest.flatten(layer(x, initial_state=initial or None, **kwargs))
            # Each output counts by another weight.
            loss = tf.add_n([tf.reduce_sum(tf.sin(y + i)) for i, y in enumerate(outputs)])
        sources = [x, *initial, *trained]
        return outputs, tape.gradient(loss, sources, unconnected_gradients="zero")

    if not fused:
        return run.get_concrete_function()
    with FusedRNN().applied(StepContext(workload_of(layer, device=device))):
        return run.get_concrete_function()


def numbers(function, *inputs):
    return [tf.cast(t, tf.float64).numpy() for t in tf.nest.flatten(function(*inputs))]


def floats(values):
    return [tf.constant(value, tf.float32) for value in values]


def assert_close(actual, expected, **tolerance):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, **(tolerance or CLOSE))


def compiled_calls(function):
    """The calls that XLA must compile, and loops that TensorFlow runs itself."""
    operations = function.graph.get_operations()
    calls = [op for op in operations if op.type.endswith("PartitionedCall")]
    compiled = [op for op in calls if op.get_attr("_XlaMustCompile")]
    return len(compiled), sum("While" in op.type for op in operations)


def inputs_of(rng, states, batch=BATCH, steps=STEPS):
    shapes = [(batch, steps, FEATURES), *[(batch, UNITS)] * states]
    return [rng.normal(size=shape) for shape in shapes]


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
    # Without a mask one loop over the whole batch, with it one for each core.
    device = TWO_CORES if masked else CPU
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


def test_explain_says_how_a_layer_runs():
    model = keras.Sequential([keras.Input((5, 3)), L.LSTM(2), L.Dense(1)])
    row = explain(model, device=CPU).rows[1]
    assert row.would["fused_rnn"] == "a loop that XLA compiles"
    row = explain(model, ["fused_rnn"], device=CPU).rows[1]
    assert row.runs_as == "a loop that XLA compiles, float32"
