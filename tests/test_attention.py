"""tfaccel.ops.attention against keras.ops.dot_product_attention, with gradients of two orders."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed

import tfaccel
from tfaccel.ops.attention import ChosenProducts, _blocks, attend
from tfaccel.ops.kernels import Chooser, kernels, reference

# Batch, queries, keys, heads, channels, value channels.
SIZES = [(2, 5, 7, 3, 4, 6), (1, 1, 1, 1, 1, 1), (0, 3, 4, 2, 3, 3), (2, 4, 4, 2, 5, 5)]
WEIGHTS = (0.3, 0.7, 1.1)


def tensors(rng, sizes, dtype="float32"):
    """Query, key, value, and a gradient of the result."""
    b, t, s, n, h, v = sizes
    shapes = ((b, t, n, h), (b, s, n, h), (b, s, n, v), (b, t, n, v))
    return [tf.cast(rng.normal(size=shape), dtype) for shape in shapes]


def masks(rng, sizes, kind):
    b, t, s, n, *_ = sizes
    if kind is None:
        return None
    shape = {"padding": (b, 1, 1, s), "queries": (b, 1, t, s), "heads": (1, n, t, s)}[kind]
    seen = rng.random(shape) > 0.4
    if kind == "queries":
        seen[:, :, 0] = False  # sees nothing
    return tf.constant(seen)


def by_keras(q, k, v, mask, is_causal):
    return keras.ops.dot_product_attention(q, k, v, mask=mask, scale=1.0, is_causal=is_causal)


def differentiated(function, q, k, v, dy):
    """The result, its gradients, and gradients of a sum of their squares."""
    x = (q, k, v)
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            y = function(*x)
        first = inner.gradient(y, x, dy)
        total = tf.add_n([tf.reduce_sum(g * g * w) for g, w in zip(first, WEIGHTS, strict=True)])
    return [y, *first, *outer.gradient(total, x)]


def assert_close(actual, expected, rtol=2e-4):
    for a, e in zip(actual, expected, strict=True):
        size = np.abs(e).max(initial=1.0)
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * size)


@pytest.fixture(params=["whole", "blocks of 2"])
def blocks(request, monkeypatch):
    """How many rows of probabilities are made at a time."""
    rows = {"whole": 10**6, "blocks of 2": 2 * 7 * 3}[request.param]
    monkeypatch.setattr(_blocks, "BLOCK_ELEMENTS", rows)
    return request.param


@crossed(
    ("sizes", "masking"),
    SIZES,
    [(None, False), (None, True), ("padding", False), ("queries", True), ("heads", False)],
)
def test_it_is_keras_ops_in_both_orders(blocks, sizes, masking, rng):
    kind, is_causal = masking
    mask = masks(rng, sizes, kind)
    operands = tensors(rng, sizes)
    expected = differentiated(lambda *x: by_keras(*x, mask, is_causal), *operands)
    actual = differentiated(lambda *x: attend(*x, mask, is_causal), *operands)
    assert_close([x.numpy() for x in actual], [x.numpy() for x in expected])


def products_by(name):
    """Products by one kernel wherever it serves, and the calls of which it computed any."""
    served = set()

    def choose(spec):
        for kernel in kernels(spec.op, spec.direction):
            if kernel.name == name and kernel.unsupported(spec) is None:
                served.add(spec.direction)
                return kernel
        return reference(spec.op, spec.direction)

    return ChosenProducts("attention", Chooser(lambda layer, specs: True, choose)), served


@crossed(
    ("sizes", "kernel"),
    SIZES,
    [("tensorflow", 3), ("onednn", 3), ("xla", 3), ("transposed", 1)],
)
def test_its_products_by_any_kernel_in_both_orders(blocks, sizes, kernel, rng):
    name, directions = kernel
    mask = masks(rng, sizes, "queries")
    operands = tensors(rng, sizes)
    products, served = products_by(name)
    expected = differentiated(lambda *x: by_keras(*x, mask, True), *operands)
    actual = differentiated(lambda *x: attend(*x, mask, True, products=products), *operands)
    assert_close([x.numpy() for x in actual], [x.numpy() for x in expected])
    # oneDNN's rest on some CPUs only, and on nothing.
    assert len(served) == directions or name == "onednn"


def test_products_that_nobody_wants_are_those_of_tensorflow(blocks, rng):
    asked = []

    def wanted(layer, specs):
        asked.extend(specs)
        return False

    operands = tensors(rng, SIZES[0])
    products = ChosenProducts("attention", Chooser(wanted, lambda spec: 1 / 0))
    expected = differentiated(attend, *operands)
    actual = differentiated(lambda *x: attend(*x, products=products), *operands)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-5)
    # The forward pass shows what the gradients need, too.
    forward = asked[:2]
    assert {(spec.x, spec.w) for spec in asked} == {(spec.x, spec.w) for spec in forward}


@pytest.mark.parametrize(
    ("known", "jit_compile", "count"),
    [
        ((), False, 7),
        pytest.param((1,), False, 7, marks=pytest.mark.slow),
        ((1,), True, 4),  # XLA takes long for gradients of gradients
        pytest.param((1,), True, 7, marks=pytest.mark.slow),
        pytest.param((0,), False, 7, marks=pytest.mark.slow),
        # XLA makes no gradient of a loop whose length it does not know.
        pytest.param((), True, 4, marks=pytest.mark.slow),
    ],
)
def test_in_a_function_whose_sizes_may_be_unknown(blocks, known, jit_compile, count, rng):
    sizes = SIZES[0]
    operands = tensors(rng, sizes)
    shapes = [[n if i in known or i > 1 else None for i, n in enumerate(x.shape)] for x in operands]
    signature = [*(tf.TensorSpec(shape) for shape in shapes), tf.TensorSpec([None] * 4, tf.bool)]

    @tf.function(input_signature=signature, jit_compile=jit_compile, autograph=False)
    def run(q, k, v, dy, mask):
        return differentiated(lambda *x: attend(*x, mask, True), q, k, v, dy)[:count]

    for mask in (masks(rng, sizes, "queries"), masks(rng, sizes, "padding")):
        keras_own = functools.partial(by_keras, mask=mask, is_causal=True)
        expected = differentiated(keras_own, *operands)[:count]
        assert_close([x.numpy() for x in run(*operands, mask)], [x.numpy() for x in expected])


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_16_bits_against_float32_of_the_same_operands(blocks, dtype, unit, rng):
    operands = tensors(rng, SIZES[0], dtype)
    wide = [tf.cast(x, tf.float32) for x in operands]
    expected = differentiated(lambda *x: by_keras(*x, None, False), *wide)[:4]
    actual = differentiated(attend, *operands)[:4]
    assert {x.dtype.name for x in actual} == {dtype}
    assert_close(
        [tf.cast(x, tf.float32) for x in actual], [x.numpy() for x in expected], rtol=8 * unit
    )


def test_float64_is_computed_in_float64(blocks, rng):
    q, k, v, _ = (x.numpy() for x in tensors(rng, SIZES[0], "float64"))
    scores = np.einsum("btnh,bsnh->bnts", q, k)
    taken = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", taken, v)
    actual = attend(*(tf.constant(x) for x in (q, k, v)))
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_not_finite_spreads_as_in_keras(blocks, bad, place, rng):
    operands = [x.numpy() for x in tensors(rng, SIZES[0])]
    operands[place][0, 1, 1, 2] = bad
    expected = differentiated(lambda *x: by_keras(*x, None, False), *map(tf.constant, operands))
    actual = differentiated(attend, *map(tf.constant, operands))
    for a, e in zip(actual[:4], expected[:4], strict=True):
        np.testing.assert_array_equal(np.isfinite(a), np.isfinite(e))


def test_a_key_at_infinity_that_no_query_sees_leaves_gradients_finite(blocks, rng):
    """Blocks are filled up with rows, whose product with the key must not be NaN either."""
    operands = q, k, _, _ = [x.numpy() for x in tensors(rng, SIZES[0])]
    q[..., 2] = -np.abs(q[..., 2])
    k[0, 1, 1, 2] = np.inf
    value, dq, dk, dv = differentiated(attend, *map(tf.constant, operands))[:4]
    expected = differentiated(lambda *x: by_keras(*x, None, False), *map(tf.constant, operands))
    for a, e in zip((value, dk, dv), (expected[0], *expected[2:4]), strict=True):
        assert np.isfinite(a).all()
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)
    # The gradient of these queries is zero times infinity.
    np.testing.assert_array_equal(np.isfinite(dq), np.isfinite(expected[1]))


def test_large_scores_do_not_overflow(blocks, rng):
    q, k, v, dy = tensors(rng, SIZES[0])
    operands = (1e3 * q, 1e3 * k, v, dy)
    actual = [x.numpy() for x in differentiated(attend, *operands)[:4]]
    assert all(np.isfinite(x).all() for x in actual)
    # Each query takes one value.
    np.testing.assert_allclose(actual[0], by_keras(*operands[:3], None, False), atol=1e-2)


def test_dropped_probabilities_and_queries_that_see_nothing(rng):
    q, k, v, dy = tensors(rng, SIZES[0])
    mask = masks(rng, SIZES[0], "queries")
    dropped = tf.cast(rng.random((2, 3, 5, 7)) > 0.3, tf.float32) / 0.7

    def plain(q, k, v):
        scores = tf.einsum("btnh,bsnh->bnts", q, k)
        taken = tf.where(mask, tf.nn.softmax(tf.where(mask, scores, -1e9)), 0.0)
        return tf.einsum("bnts,bsnh->btnh", taken * dropped, v)

    actual = differentiated(
        lambda *x: attend(*x, mask, dropped=dropped, zero_masked=True), q, k, v, dy
    )
    assert_close(
        [x.numpy() for x in actual], [x.numpy() for x in differentiated(plain, q, k, v, dy)]
    )
    np.testing.assert_array_equal(actual[0][:, 0], 0.0)


def largest_tensor(graph):
    """Elements, in a graph and in the bodies of its loops."""
    found = [0]
    for op in graph.get_operations():
        found += [x.shape.num_elements() or 0 for x in op.outputs]
        if "While" in op.type:
            body = op.get_attr("body").name
            found.append(largest_tensor(graph._get_function(body).graph))
    return max(found)


def test_blocks_never_make_all_probabilities_at_once(monkeypatch):
    queries = keys = 64

    def largest():
        @tf.function(input_signature=[tf.TensorSpec([1, queries, 2, 3])] * 3, autograph=False)
        def run(*x):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = attend(*x)
            return tape.gradient(y, x)

        return largest_tensor(run.get_concrete_function().graph)

    assert largest() == 2 * queries * keys
    monkeypatch.setattr(_blocks, "BLOCK_ELEMENTS", 2 * keys * 8)
    assert largest() == 2 * keys * 8


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
def test_the_op_is_that_of_keras(key_heads, scale, rng):
    q, k, v, _ = tensors(rng, (2, 5, 7, 4, 4, 6))
    k, v = (x[:, :, :key_heads] for x in (k, v))
    mask = masks(rng, (2, 5, 7, 4), "padding")
    arguments = {"mask": mask, "scale": scale, "is_causal": True}
    keras_own = functools.partial(keras.ops.dot_product_attention, **arguments)
    # An earlier Keras repeats no heads.
    k4, v4 = (tf.repeat(x, 4 // key_heads, axis=2) for x in (k, v))
    expected = keras_own(q, k4, v4)
    actual = tfaccel.ops.scaled_dot_product_attention(q, k, v, **arguments)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"query": tf.ones((2, 3, 4))}, ValueError, "`query` must have four dimensions"),
        ({"key": tf.ones((1, 3, 2, 5))}, ValueError, "`key` must have the query's channels"),
        ({"key": tf.ones((1, 3, 3, 4))}, ValueError, "heads that divide the query's"),
        ({"value": tf.ones((1, 3, 1, 4))}, ValueError, "`value` must have the key's heads"),
        ({"value": tf.ones((1, 3, 2, 4), tf.float16)}, TypeError, "one floating-point dtype"),
        ({"mask": tf.ones((1, 1, 3, 3))}, ValueError, "`mask` must hold booleans"),
        ({"mask": tf.ones((3, 3), tf.bool)}, ValueError, "in four dimensions"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    good = dict.fromkeys(("query", "key", "value"), tf.ones((1, 3, 2, 4)))
    with pytest.raises(error, match=words):
        tfaccel.ops.scaled_dot_product_attention(**(good | change))
