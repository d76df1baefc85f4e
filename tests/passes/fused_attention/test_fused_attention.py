"""FusedAttention against Keras's own layers, which are the plain reference."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from attending import (
    BATCH,
    CLOSE,
    CPU,
    KEYS,
    LAYERS,
    QUERIES,
    SELF_AND_CROSS,
    WIDTH,
    Run,
    assert_close,
    assert_same_as_keras,
    inputs_of,
    twins,
    workload_of,
)
from crossed import crossed, with_slow
from early import built_early

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.attention import _blocks
from tfaccel.ops.kernels import Candidate, Ranking
from tfaccel.passes import Kernels
from tfaccel.passes.attention.fused_attention import FusedAttention
from tfaccel.passes.kernels import _selection

pytestmark = pytest.mark.usefixtures("unoptimised")
MultiHeadAttention = keras.layers.MultiHeadAttention
GroupQueryAttention = keras.layers.GroupQueryAttention


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


@pytest.mark.parametrize("unknown", with_slow([(0,), (1,), (0, 1)], [(0,), (1,)]), ids=str)
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


@pytest.mark.parametrize(
    "policy", ["float32", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)]
)
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
        return built_early(model)

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

    def measured(spec, clock, deadline, likely, families, expected):
        rows = [
            Candidate("transposed", Outcome.FASTER, 1e-3, Speedup(2.0, 1.9, 2.1, 6), 0.0)
            if spec.direction == "weight_gradient"
            else Candidate("tensorflow", Outcome.BASELINE, 2e-3, Speedup())
        ]
        return Ranking(spec, tuple(rows))

    monkeypatch.setattr(_selection, "measure", measured)
    monkeypatch.setattr(_selection, "shipped", tuple)
    monkeypatch.setattr(_selection, "LEAST_SHARE", 0.0)
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
