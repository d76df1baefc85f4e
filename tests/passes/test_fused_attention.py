"""FusedAttention against Keras's own layers, which are the plain reference."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.attention import _blocks
from tfaccel.ops.kernels import Candidate, Ranking
from tfaccel.passes import Kernels
from tfaccel.passes.attention.fused_attention import FusedAttention
from tfaccel.passes.kernels import _selection
from tfaccel.system.device import Device

pytestmark = pytest.mark.usefixtures("unoptimised")
MultiHeadAttention = keras.layers.MultiHeadAttention
GroupQueryAttention = keras.layers.GroupQueryAttention

CPU = Device("CPU", "test")
CLOSE = {"rtol": 1e-4, "atol": 2e-5}
BATCH, QUERIES, KEYS, WIDTH = 3, 5, 7, 12


def workload_of(*layers):
    model = keras.Model()
    model.parts = list(layers)
    return Workload(model, device=CPU)


def twins(make, rng, shapes, copies=2):
    """Equal layers, built, with weights and biases that are not their defaults."""
    layers = [make() for _ in range(copies)]
    for layer in layers:
        layer.build(*shapes)
    for weights in zip(*(layer.trainable_weights for layer in layers), strict=True):
        value = rng.normal(size=weights[0].shape) * 0.5
        for weight in weights:
            weight.assign(value)
    return layers


class Run:
    """A traced function of a layer: its output, and gradients of its inputs and weights."""

    def __init__(self, layer, inputs, spec=None, fused=None, jit_compile=False, **kwargs):
        self.weights = [w.value for w in layer.trainable_weights]

        @tf.function(jit_compile=jit_compile, autograph=False)
        def run(*inputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                y = layer(*_named(inputs), **kwargs)
                y = y[0] if isinstance(y, tuple) else y
                loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
            return y, *tape.gradient(loss, [*inputs, *self.weights])

        spec = spec or [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
        with (fused or Plan()).applied(StepContext(workload_of(layer))):
            self.function = run.get_concrete_function(*spec)

    def ops(self):
        return [op.type for op in self.function.graph.get_operations()]

    def __call__(self, *inputs):
        return [tf.cast(x, tf.float32).numpy() for x in self.function(*inputs)]


def _named(inputs):
    """One tensor is query, key and value."""
    return inputs if len(inputs) > 1 else (inputs[0], inputs[0])


def assert_close(actual, expected, **tolerance):
    """Equal beside the largest of all: a key's bias has a gradient of nothing but rounding."""
    size = max(np.abs(e).max(initial=1.0) for e in expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a / size, e / size, **(tolerance or CLOSE))


def inputs_of(rng, lengths, dtype="float32"):
    return [tf.cast(rng.normal(size=(BATCH, n, WIDTH)), dtype) for n in lengths]


def assert_same_as_keras(
    make, rng, lengths=(QUERIES,), dtype="float32", spec=None, jit_compile=False, **kwargs
):
    """A fused layer and Keras's agree; returns the fused run."""
    tolerance = kwargs.pop("tolerance", {})
    inputs = inputs_of(rng, lengths, dtype)
    own, layer = twins(make, rng, [x.shape for x in _named(inputs)])
    plain = Run(own, inputs, spec, **kwargs)
    fused = Run(layer, inputs, spec, FusedAttention(), jit_compile, **kwargs)
    assert_close(fused(*inputs), plain(*inputs), **tolerance)
    assert fused.ops() != plain.ops()
    return fused


LAYERS = {
    "plain": lambda: MultiHeadAttention(3, 4),
    "one head": lambda: MultiHeadAttention(1, 4),
    "other value_dim": lambda: MultiHeadAttention(3, 4, value_dim=5),
    "no bias": lambda: MultiHeadAttention(3, 4, use_bias=False),
    "output_shape": lambda: MultiHeadAttention(3, 4, output_shape=(2, 5)),
    "regularized": lambda: MultiHeadAttention(3, 4, kernel_regularizer="l2"),
    "grouped": lambda: GroupQueryAttention(4, 4, 2),
    "all heads share": lambda: GroupQueryAttention(4, 4, 1, use_bias=False),
}
# One tensor, one for keys and values, and one for each.
LENGTHS = [(QUERIES,), (QUERIES, KEYS), (QUERIES, KEYS, KEYS)]
# Every layer meets one of them, and the two kinds of layers all.
SELF_AND_CROSS = [
    pytest.param(make, lengths, id=f"{name}-{lengths}")
    for place, (name, make) in enumerate(LAYERS.items())
    for turn, lengths in enumerate(LENGTHS)
    if place % 3 == turn or name in ("plain", "grouped")
]


@pytest.mark.parametrize(("make", "lengths"), SELF_AND_CROSS)
def test_self_and_cross_attention(make, lengths, rng):
    assert_same_as_keras(make, rng, lengths)


def test_one_tensor_is_projected_by_one_product(rng):
    fused = assert_same_as_keras(LAYERS["plain"], rng)
    # Projections forward and back (2), attention (2), output; their gradients apart.
    assert fused.ops().count("MatMul") == 2 + 4
    crossed = assert_same_as_keras(LAYERS["plain"], rng, (QUERIES, KEYS))
    assert crossed.ops().count("MatMul") == 3 + 6


# Any two of the four are met in every combination.
@pytest.mark.parametrize(
    ("kind", "name", "is_causal", "dropout"),
    [
        (None, "plain", False, 0.0),
        (None, "grouped", True, 0.4),
        ("queries", "plain", False, 0.4),
        ("queries", "grouped", True, 0.0),
        ("padding", "plain", True, 0.0),
        ("padding", "grouped", False, 0.4),
        ("heads", "plain", True, 0.4),
        ("heads", "grouped", False, 0.0),
        ("flat", "plain", False, 0.4),
        ("flat", "grouped", True, 0.0),
    ],
)
def test_masks(kind, name, is_causal, dropout, rng):
    make = LAYERS[name]

    def with_dropout():
        layer = make()
        config = layer.get_config() | {"dropout": dropout, "seed": 3}
        return type(layer).from_config(config)

    heads = getattr(make(), "num_heads", 4)
    shapes = {
        "queries": (BATCH, QUERIES, QUERIES),
        "padding": (BATCH, 1, QUERIES),
        "heads": (BATCH, heads, QUERIES, QUERIES),
        "flat": (QUERIES, QUERIES),
    }
    mask = None
    if kind is not None:
        mask = rng.random(shapes[kind]) > 0.4
        mask[..., 0, :] = False  # a query that sees nothing
        mask = tf.constant(mask)
    # An earlier Keras adds -1e9 to masked scores, and rounds them.
    assert_same_as_keras(
        with_dropout,
        rng,
        attention_mask=mask,
        use_causal_mask=is_causal,
        training=True,
        tolerance={"rtol": 1e-3, "atol": 1e-4},
    )


@pytest.mark.parametrize("training", [False, True, None])
def test_dropout_draws_what_keras_draws(training, rng):
    inputs = inputs_of(rng, (QUERIES,))
    own, layer = twins(
        lambda: MultiHeadAttention(3, 4, dropout=0.5, seed=7), rng, [inputs[0].shape] * 2
    )
    plain = Run(own, inputs, training=training)
    fused = Run(layer, inputs, fused=FusedAttention(), training=training)
    first = fused(*inputs)
    assert_close(first, plain(*inputs))
    second = fused(*inputs)
    assert_close(second, plain(*inputs))  # the seed has moved on in both
    assert np.allclose(first[0], second[0]) != bool(training)


@pytest.mark.parametrize("unknown", [(0,), (1,), (0, 1)], ids=str)
def test_sizes_that_are_not_known_while_tracing(unknown, rng, monkeypatch):
    shape = [None if i in unknown else n for i, n in enumerate((BATCH, QUERIES, WIDTH))]
    fused = assert_same_as_keras(
        LAYERS["plain"], rng, spec=[tf.TensorSpec(shape)], use_causal_mask=True
    )
    for batch in (1, 0, 4) if 0 in unknown else ():
        assert fused(tf.ones((batch, QUERIES, WIDTH)))[0].shape == (batch, QUERIES, WIDTH)
    for length in (1, 9) if 1 in unknown else ():
        assert np.isfinite(fused(tf.ones((BATCH, length, WIDTH)))[0]).all()


def test_a_long_sequence_by_blocks(rng, monkeypatch):
    monkeypatch.setattr(_blocks, "BLOCK_ELEMENTS", 2 * 3 * QUERIES)
    fused = assert_same_as_keras(LAYERS["plain"], rng, use_causal_mask=True)
    assert any("While" in op for op in fused.ops())


def test_a_sequence_of_one(rng):
    assert_same_as_keras(LAYERS["plain"], rng, (1,))


def test_by_xla(rng):
    assert_same_as_keras(LAYERS["plain"], rng, jit_compile=True, use_causal_mask=True)


@crossed(("kind", "dropout"), [("bfloat16", 2**-8), ("float16", 2**-11)], [0.0, 0.4])
def test_16_bits(kind, dropout, rng):
    dtype, unit = kind
    assert_same_as_keras(
        lambda: MultiHeadAttention(3, 4, dropout=dropout, seed=1, dtype=f"mixed_{dtype}"),
        rng,
        dtype=dtype,
        training=True,
        tolerance={"rtol": 0.0, "atol": 16 * unit},
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_spreads_as_in_keras(bad, rng):
    inputs = inputs_of(rng, (QUERIES, KEYS))
    own, layer = twins(LAYERS["plain"], rng, [x.shape for x in inputs])
    plain, fused = Run(own, inputs), Run(layer, inputs, fused=FusedAttention())
    for place in range(2):
        broken = [x.numpy() for x in inputs]
        broken[place][1, 2, 3] = bad
        for a, e in zip(fused(*broken), plain(*broken), strict=True):
            np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e))


def test_a_gradient_penalty(rng):
    (x,) = inputs_of(rng, (QUERIES,))
    own, layer = twins(LAYERS["plain"], rng, [x.shape] * 2)

    def penalty(layer):
        @tf.function(autograph=False)
        def run(x):
            weights = [w.value for w in layer.trainable_weights]
            with tf.GradientTape() as outer:
                with tf.GradientTape() as inner:
                    inner.watch(x)
                    y = tf.reduce_sum(tf.tanh(layer(x, x)))
                total = tf.reduce_sum(inner.gradient(y, x) ** 2)
            return outer.gradient(total, weights[:-1])  # the last bias has none

        return [g.numpy() for g in run(x)]

    with FusedAttention().applied(StepContext(workload_of(layer))):
        actual = penalty(layer)
    assert_close(actual, penalty(own), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("option", [{"sliding_window": 2}, {"use_gate": True}], ids=str)
def test_newer_options_of_keras(option, rng):
    for kind, sizes in ((MultiHeadAttention, (3, 4)), (GroupQueryAttention, (4, 4, 2))):
        try:
            kind(*sizes, **option)
        except (TypeError, ValueError):
            pytest.skip(f"this Keras has no {option}")
        assert_same_as_keras(lambda: kind(*sizes, **option), rng, use_causal_mask=True)  # noqa: B023


def test_masks_that_keras_hands_on(rng):
    def model():
        tokens = keras.Input((QUERIES,), dtype="int32")
        x = keras.layers.Embedding(9, WIDTH, mask_zero=True)(tokens)
        y = MultiHeadAttention(3, 4)(x, x)
        return keras.Model(
            tokens, keras.layers.GlobalAveragePooling1D()(keras.layers.Add()([x, y]))
        )

    own, other = model(), model()
    other.set_weights([rng.normal(size=w.shape) for w in own.get_weights()])
    own.set_weights(other.get_weights())
    tokens = np.array([[1, 2, 3, 0, 0], [4, 5, 6, 7, 8], [1, 0, 0, 0, 0]])
    with FusedAttention().applied(StepContext(Workload(other, device=CPU))):
        actual = tf.function(lambda x: other(x, training=True))(tokens)
    np.testing.assert_allclose(actual, tf.function(own)(tokens), **CLOSE)


class Doubled(MultiHeadAttention):
    def _compute_attention(self, *args, **kwargs):
        y, scores = super()._compute_attention(*args, **kwargs)
        return 2.0 * y, scores


class Mine(MultiHeadAttention):
    """A subclass that changes nothing."""


def test_a_subclass_that_changes_nothing_is_served(rng):
    assert_same_as_keras(lambda: Mine(3, 4), rng)


def keeps_its_own(layer, inputs, **kwargs):
    plain = Run(layer, inputs, **kwargs)
    return Run(layer, inputs, fused=FusedAttention(), **kwargs).ops() == plain.ops()


@pytest.mark.parametrize(
    ("make", "refusal", "named"),
    [
        (lambda: Doubled(3, 4), Refusal.OWN_CODE, "_compute_attention"),
        (lambda: MultiHeadAttention(3, 4, dtype="float64"), Refusal.DTYPE, "float64"),
        (
            lambda: MultiHeadAttention(3, 4, activity_regularizer="l2"),
            Refusal.CASE,
            "activity_regularizer",
        ),
        (
            lambda: MultiHeadAttention(3, 4, flash_attention=True),
            Refusal.SETTING,
            "flash_attention",
        ),
    ],
    ids=["subclass", "float64", "activity_regularizer", "flash_attention"],
)
def test_layers_that_keep_keras(make, refusal, named):
    layer = make()
    layer.build((None, QUERIES, WIDTH), (None, QUERIES, WIDTH))
    unsupported = FusedAttention().unsupported(workload_of(layer))
    assert unsupported.kind is refusal
    assert repr(layer.name) in unsupported.cause and named in unsupported.cause
    with FusedAttention().applied(StepContext(workload_of(layer))):
        assert "call" not in vars(layer)


def test_more_than_one_attention_axis_keeps_keras(rng):
    layer = MultiHeadAttention(2, 3, attention_axes=(1, 2))
    x = tf.cast(rng.normal(size=(2, 3, 4, 5)), tf.float32)
    layer.build(x.shape, x.shape)
    assert keeps_its_own(layer, [x])
    unsupported = FusedAttention().unsupported(workload_of(layer))
    assert unsupported.kind is Refusal.CASE and "(1, 2)" in unsupported.cause


def test_attention_scores_are_keras_own(rng):
    inputs = inputs_of(rng, (QUERIES,))
    (layer,) = twins(LAYERS["plain"], rng, [inputs[0].shape] * 2, copies=1)
    assert keeps_its_own(layer, inputs, return_attention_scores=True)


def test_lora_is_part_of_the_weights(rng):
    inputs = inputs_of(rng, (QUERIES,))
    own, layer = twins(LAYERS["plain"], rng, [inputs[0].shape] * 2)
    for copy in (own, layer):
        copy.query_dense.enable_lora(2)
    for a, b in zip(own.weights, layer.weights, strict=True):
        a.assign(rng.normal(size=a.shape))
        b.assign(a)
    fused = Run(layer, inputs, fused=FusedAttention())
    assert_close(fused(*inputs), Run(own, inputs)(*inputs))


def test_a_model_without_attention_is_refused():
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    unsupported = FusedAttention().unsupported(Workload(model, device=CPU))
    assert unsupported.kind is Refusal.NOTHING


def test_nothing_is_left_behind(rng):
    inputs = inputs_of(rng, (QUERIES,))
    (layer,) = twins(LAYERS["plain"], rng, [inputs[0].shape] * 2, copies=1)
    before = dict(vars(layer))
    Run(layer, inputs, fused=FusedAttention())
    after = {k: v for k, v in vars(layer).items() if not k.startswith("_called")}
    assert after == {k: v for k, v in before.items() if not k.startswith("_called")}
    with (
        pytest.raises(RuntimeError, match="inside"),
        FusedAttention().applied(StepContext(workload_of(layer))),
    ):
        raise RuntimeError("inside")
    assert "call" not in vars(layer)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_training_a_model_agrees(policy, rng):
    keras.config.set_dtype_policy(policy)

    def model():
        keras.utils.set_random_seed(3)
        tokens = keras.Input((QUERIES,), dtype="int32")
        x = keras.layers.Embedding(9, WIDTH)(tokens)
        x = keras.layers.Add()([x, MultiHeadAttention(3, 4, dropout=0.2)(x, x)])
        x = keras.layers.Flatten()(x)
        model = keras.Model(tokens, keras.layers.Dense(2, dtype="float32")(x))
        model.compile("sgd", "mse")
        return model

    x, y = rng.integers(0, 9, (20, QUERIES)), rng.normal(size=(20, 2)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)  # the last is smaller
    own, other = model(), model()
    for each, passes in ((own, ()), (other, (FusedAttention(),))):
        with Plan(passes).applied(StepContext(Workload(other, device=CPU))):
            each.make_train_function(force=True)
            iterator = iter(data.repeat(2))
            for _ in range(6):
                each.train_function(iterator)
    tolerance = CLOSE if policy == "float32" else {"rtol": 0.05, "atol": 0.05}
    assert_close(other.get_weights(), own.get_weights(), **tolerance)


def test_with_kernels_its_products_are_chosen(rng, monkeypatch):
    """They are noted before the step, each shape once, and computed by what won."""

    def measured(spec, clock, deadline, likely, families):
        rows = [
            Candidate("transposed", Outcome.FASTER, 1e-3, Speedup(2.0, 1.9, 2.1, 6), 0.0)
            if spec.direction == "weight_gradient"
            else Candidate("tensorflow", Outcome.BASELINE, 2e-3, Speedup())
        ]
        return Ranking(spec, tuple(rows))

    monkeypatch.setattr(_selection, "measure", measured)
    monkeypatch.setattr(_selection, "shipped", tuple)
    monkeypatch.setattr(_selection, "_LEAST_SHARE", 0.0)
    x = keras.Input((QUERIES, WIDTH))
    model = keras.Model(x, MultiHeadAttention(3, 4, name="attention")(x, x))
    model.compile("sgd", "mse")
    (inputs,) = inputs_of(rng, (QUERIES,))
    workload = Workload(model, ((inputs, inputs),), device=CPU)
    plan = Plan((FusedAttention(), Kernels()))
    context = StepContext(workload)
    plan.prepare(context, time.perf_counter)
    lines = Kernels().findings(context)
    for product in ("3x5x12 * 12x36", "3x5x12 * 12x12", "3x3x5x5 * 3x3x5x4"):
        (line,) = (line for line in lines if product in line)
        assert (
            line.startswith("kernels: attention")
            and "weight gradient by transposed (2.00x)" in line
        )
    assert context.chooser is None

    def gradients(passes):
        @tf.function(autograph=False)
        def run(x):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(model(x) ** 2)
            return tape.gradient(loss, [w.value for w in model.trainable_weights])

        with Plan(passes).applied(context):
            return run.get_concrete_function(tf.TensorSpec((None, QUERIES, WIDTH)))

    plain, chosen = gradients([FusedAttention()]), gradients(plan.passes)
    assert_close([x.numpy() for x in chosen(inputs)], [x.numpy() for x in plain(inputs)])
    assert [op.type for op in chosen.graph.get_operations()] != [
        op.type for op in plain.graph.get_operations()
    ]
