"""Recompute against the untouched step: the same losses, gradients and variables."""

import functools
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes import XLA, FusedNorm, FusedOptimizer, MixedPrecision
from tfaccel.passes.recompute import _sites as sites
from tfaccel.passes.recompute._partition import cuts
from tfaccel.passes.recompute.recompute import Recompute
from tfaccel.steps.compiled_step import build_step

layers = keras.layers
STEPS = 2


@pytest.fixture
def recomputed(monkeypatch):
    """Counts the parts that are recomputed; a part that is left as it is does not count."""
    counted = []
    own = sites.with_gradient

    def with_gradient(*args):
        counted.append(args)
        return own(*args)

    monkeypatch.setattr(sites, "with_gradient", with_gradient)
    return counted


def batches(x, y, size=4):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size).repeat()


def normal(*shape):
    return np.random.default_rng(7).normal(size=shape).astype("float32")


def trained(make, plan, data):
    """Logs of a few steps under a plan, and every variable after them."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    model = make()
    if not model.built:
        model(next(iter(data))[0])
    step, iterator = build_step(Workload(model), plan), iter(data)
    logs = [{k: float(v) for k, v in step(iterator).items()} for _ in range(STEPS)]
    optimizer = model.optimizer.variables if model.optimizer else []
    named = [*model.variables, *model.metrics_variables, *optimizer]
    return logs, [(v.path, v.numpy()) for v in named], model


def assert_same(make, data, plan=None, rtol=2e-5, base=None):
    """The step under the plan and that without `recompute` agree; returns the model."""
    plan = plan or Plan((Recompute(),))
    expected = trained(make, base or plan.without("recompute"), data)
    actual = trained(make, plan, data)
    for a, e in zip(actual[0], expected[0], strict=True):
        assert a == pytest.approx(e, rel=rtol)
    for (path, a), (_, e) in zip(actual[1], expected[1], strict=True):
        if e.dtype.kind in "iub":
            np.testing.assert_array_equal(a, e, path)
        else:
            np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * 0.1, err_msg=path)
    return actual[2]


def compiled(model, optimizer=None, **kwargs):
    model.compile(optimizer or keras.optimizers.SGD(0.1), **{"loss": "mse", **kwargs})
    return model


# -- models whose parts can all be recomputed -----------------------------------------


def conv_blocks(regularizer="l2", **compiling):
    """Statistics, masks drawn, losses added, and a sum over a shortcut, in every block."""
    x = inputs = keras.Input((6, 6, 3))
    for _ in range(2):
        y = layers.Conv2D(4, 3, padding="same")(x)
        y = layers.Dropout(0.3)(layers.ReLU()(layers.BatchNormalization()(y)))
        y = layers.Dense(4, activation="gelu", activity_regularizer=regularizer)(y)
        x = layers.Conv2D(4, 1, kernel_regularizer="l2")(x) + y
    outputs = layers.Dense(2)(layers.GlobalAveragePooling2D()(x))
    return compiled(keras.Model(inputs, outputs), metrics=["mae"], **compiling)


def sequential():
    body = [layers.Dense(8, activation="tanh") for _ in range(6)]
    return compiled(keras.Sequential([keras.Input((5,)), *body, layers.Dense(2)]))


def masked_text():
    tokens = keras.Input((7,), dtype="int32")
    x = layers.Embedding(11, 6, mask_zero=True)(tokens)
    x = layers.LSTM(6, return_sequences=True, dropout=0.2, recurrent_dropout=0.2)(x)
    x = layers.TimeDistributed(layers.Dense(6, activation="relu"))(x)
    x = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3, dropout=0.1)(x, x))
    x = layers.GlobalAveragePooling1D()(x)
    return compiled(keras.Model(tokens, layers.Dense(2)(layers.Dense(5)(x))), "adam")


def several_ends():
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    tower = keras.Sequential([layers.Dense(6, activation="relu"), layers.Dense(5)], name="tower")
    shared = layers.Dense(5, activation="tanh")
    joined = layers.Concatenate()([shared(tower(a)), shared(shared(tower(b)))])
    x = layers.Dense(6, activation="gelu")(layers.Dense(6, activation="relu")(joined))
    u = layers.Dense(2, name="u")(x)
    v = layers.Dense(2, name="v")(layers.Dense(3)(keras.ops.sin(x)))
    model = keras.Model({"a": a, "b": b}, {"u": u, "v": v})
    return compiled(model, keras.optimizers.SGD(1e-2, clipnorm=1.0), loss={"u": "mse", "v": "mae"})


def nested_backbone():
    x = inputs = keras.Input((6, 6, 3))
    for _ in range(3):
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x)))
    backbone = keras.Model(inputs, x, name="backbone")
    head = [layers.GlobalAveragePooling2D(), layers.Dropout(0.5), layers.Dense(2)]
    return compiled(keras.Sequential([keras.Input((6, 6, 3)), backbone, *head]), "adam")


def frozen_backbone():
    model = nested_backbone()
    model.layers[0].trainable = False
    model.layers[0].layers[-3].trainable = True
    return compiled(model, keras.optimizers.AdamW(weight_decay=0.01))


class Block(layers.Layer):
    """A residual block with a draw, a metric, a loss and a counter of its own."""

    def __init__(self, width):
        super().__init__()
        self.norm = layers.LayerNormalization()
        self.wide = layers.Dense(2 * width, activation="gelu")
        self.narrow = layers.Dense(width)
        self.dropout = layers.Dropout(0.2)
        self.seed = keras.random.SeedGenerator(3)
        self.seen = keras.metrics.Mean(name="seen")

    def build(self, shape):
        for layer, given in ((self.norm, shape), (self.wide, shape)):
            layer.build(given)
        self.narrow.build((*shape[:-1], self.wide.units))
        self.calls = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x, training=None, scale=None):
        self.calls.assign_add(1.0)
        y = self.dropout(self.narrow(self.wide(self.norm(x))), training=training)
        noise = keras.random.normal(keras.ops.shape(y), stddev=0.01, seed=self.seed)
        self.add_loss(keras.ops.mean(y**2))
        self.seen.update_state(y)
        return x + y * (scale or 1.0) + noise * self.calls, {
            "norm": keras.ops.mean(y),
            "none": None,
        }


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [Block(4) for _ in range(2)]
        self.head = layers.Dense(2)

    def call(self, x, training=False):
        for block in self.blocks:
            x, told = block(x, scale=0.5)
            self.add_loss(told["norm"])
        return self.head(x)


def subclassed():
    return compiled(Subclassed())


class InOneLayer(keras.Model):
    """Everything is in one layer, which has to be looked into."""

    def __init__(self):
        super().__init__()
        self.body = Subclassed()

    def call(self, x, training=False):
        return self.body(x)


IMAGES = (normal(16, 6, 6, 3), normal(16, 2))
ROWS = (normal(16, 5), normal(16, 2))
TOKENS = np.random.default_rng(2).integers(0, 11, (16, 7))
TOKENS[:, 5:] = 0
PURE = {
    "conv_blocks": (conv_blocks, IMAGES),
    "sequential": (sequential, ROWS),
    "masked_text": (masked_text, (TOKENS, normal(16, 2))),
    "several_ends": (
        several_ends,
        (
            {"a": normal(16, 4), "b": normal(16, 4) * 2},
            {"u": normal(16, 2), "v": normal(16, 2) - 1},
        ),
    ),
    "nested_backbone": (nested_backbone, IMAGES),
    "frozen_backbone": (frozen_backbone, IMAGES),
    "subclassed": (subclassed, (normal(16, 4), normal(16, 2))),
    "in_one_layer": (lambda: compiled(InOneLayer()), (normal(16, 4), normal(16, 2))),
}


# The dearest to compile, and what differs little from another.
LONG = ("masked_text", "nested_backbone", "in_one_layer")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in PURE]
)
def test_it_is_the_same_training(name, recomputed):
    make, data = PURE[name]
    assert_same(make, batches(*data))
    assert recomputed, "nothing was recomputed"


@pytest.mark.parametrize(
    "segments", [2, 100, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 5))]
)
def test_any_number_of_parts(segments, recomputed):
    assert_same(sequential, batches(*ROWS), Plan((Recompute(segments),)))
    assert 1 <= len(recomputed) <= segments


def without_losses():
    """Keras can't add a loss in 16 bits to one in 32."""
    return conv_blocks(None, optimizer=keras.optimizers.SGD(0.01))


@pytest.mark.parametrize(
    ("make", "data", "items"),
    [
        (without_losses, IMAGES, (FusedNorm(), FusedOptimizer(), Recompute())),
        (without_losses, IMAGES, (Recompute(), FusedNorm())),
        (without_losses, IMAGES, (MixedPrecision("bfloat16"), Recompute())),
        (without_losses, IMAGES, (Recompute(), MixedPrecision("float16"))),
        (sequential, ROWS, (Recompute(), XLA())),
    ],
    ids=["fused", "before_fused", "bfloat16", "before_float16", "xla"],
)
@pytest.mark.slow
def test_together_with_other_passes(make, data, items, recomputed):
    # In 16 bits a gradient is rounded where two of them meet, and they meet elsewhere.
    rtol = 2e-2 if any(isinstance(item, MixedPrecision) for item in items) else 1e-4
    assert_same(make, batches(*data), Plan(items), rtol=rtol)
    assert recomputed


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
@pytest.mark.slow
def test_policies_of_the_users_own(policy, recomputed):
    """A row of layers, so that no gradients meet; some have a policy of their own."""

    def make():
        body = []
        for _ in range(3):
            body += [layers.Dense(6, activation="tanh"), layers.LayerNormalization()]
            body += [layers.Dense(6, dtype="float32"), layers.BatchNormalization()]
        return compiled(keras.Sequential([keras.Input((5,)), *body, layers.Dense(2)]))

    keras.config.set_dtype_policy(policy)
    assert_same(make, batches(*ROWS), rtol=1e-6)
    assert recomputed


# -- layers that can't be recomputed, and models that have some -----------------------


class Impure(layers.Layer):
    """Does things with a generator, a variable or a tensor that no one else may repeat."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.dense = layers.Dense(5)
        self.count = tf.Variable(1.0, trainable=False)
        self.generator = tf.random.Generator.from_seed(3)
        self.outer = layers.Dense(5)

    def build(self, shape):
        self.dense.build(shape)
        self.outer.build(shape)
        self.table = self.add_weight(shape=(9, 5))
        self.drifting = self.add_weight(shape=(5,))

    def call(self, x):
        y = tf.tanh(self.dense(x))
        if self.kind == "raw_variable":
            self.count.assign_add(1.0)
            return y * self.count
        if self.kind == "generator":
            return y + self.generator.normal(tf.shape(y))
        if self.kind == "keras_seed":
            return y + keras.random.normal((5,))
        if self.kind == "python":
            return tf.reshape(tf.py_function(lambda z: z * 2.0, [y], "float32"), tf.shape(y)) + y
        if self.kind == "gather":
            return y + keras.ops.take(self.table, keras.ops.argmax(x, axis=-1), axis=0)
        if self.kind == "trained":
            self.drifting.assign(self.drifting * 0.9 + tf.reduce_mean(y, 0))
            return y * self.drifting
        if self.kind == "sparse_output":
            return tf.sparse.to_dense(tf.sparse.from_dense(y)) + y
        raise AssertionError(self.kind)


def impure(kind):
    x = inputs = keras.Input((5,))
    for index in range(4):
        x = layers.Dense(5, activation="tanh")(x)
        if index == 1:
            x = Impure(kind)(x)
    return compiled(keras.Model(inputs, layers.Dense(2)(x)), "adam")


@pytest.mark.parametrize(
    "kind",
    ["raw_variable", "generator", "keras_seed", "python", "gather", "trained", "sparse_output"],
)
@pytest.mark.slow
def test_what_can_t_be_repeated_is_not(kind, recomputed):
    assert_same(lambda: impure(kind), batches(*ROWS))
    assert recomputed, "the other layers can be recomputed"


def spectral():
    x = inputs = keras.Input((5,))
    for _ in range(3):
        x = layers.Dense(5, activation="relu")(x)
        x = layers.SpectralNormalization(layers.Dense(5))(x)
    return compiled(keras.Model(inputs, layers.Dense(2)(x)))


def goes_on():
    inputs = keras.Input(batch_shape=(4, 6, 3))
    x = layers.LSTM(4, stateful=True, return_sequences=True)(layers.Dense(4)(inputs))
    y, state = layers.GRU(4, return_state=True)(layers.Dense(4)(x))
    return compiled(keras.Model(inputs, layers.Dense(2)(y + state)))


def tied_embedding():
    tokens = keras.Input((7,), dtype="int32")
    embedding = layers.Embedding(11, 6)
    x = layers.Dense(6)(layers.Dense(6, activation="relu")(embedding(tokens)))
    x = keras.ops.matmul(layers.Dense(6)(x), keras.ops.transpose(embedding.embeddings.value))
    return compiled(keras.Model(tokens, layers.Dense(2)(layers.Flatten()(x))), "adam")


@pytest.mark.parametrize(
    ("make", "data"),
    [
        (spectral, ROWS),
        (goes_on, (normal(16, 6, 3), normal(16, 2))),
        (tied_embedding, (TOKENS, normal(16, 2))),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
@pytest.mark.slow
def test_kerass_own_layers_that_can_t_be_repeated(make, data):
    assert_same(make, batches(*data))


def test_a_warning_where_nothing_is_recomputed():
    model = keras.Sequential([keras.Input((5,)), *(Impure("generator") for _ in range(4))])
    with pytest.warns(RuntimeWarning, match="recomputes nothing.*Keras does not track"):
        trained(lambda: compiled(model), Plan((Recompute(),)), batches(ROWS[0], ROWS[0]))


# -- ways of training ----------------------------------------------------------------


class Penalised(keras.Model):
    """A gradient of a gradient."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            with tf.GradientTape() as inner:
                inner.watch(x)
                predicted = self(x, training=True)
            derivative = inner.gradient(predicted, x)
            loss = tf.reduce_mean((predicted - y) ** 2) + tf.reduce_mean(derivative**2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss, "slope": tf.reduce_sum(derivative)}


def penalised():
    x = inputs = keras.Input((5,))
    for _ in range(6):
        x = layers.Dropout(0.2)(layers.Dense(6, activation="tanh")(x))
    return compiled(Penalised(inputs, layers.Dense(2)(x)))


@pytest.mark.slow
def test_a_gradient_of_a_gradient(recomputed):
    assert_same(penalised, batches(*ROWS))
    assert recomputed


@pytest.mark.slow
def test_batches_of_several_sizes(recomputed):
    data = (
        tf.data.Dataset.from_tensor_slices((normal(14, 6, 6, 3), normal(14, 2))).batch(6).repeat()
    )
    assert_same(conv_blocks, data)
    assert recomputed


def test_xla_does_not_optimize_the_second_run_away():
    """It would then keep what it should not."""
    depth, counts = 12, []
    for plan in (Plan(), Plan((Recompute(),))):
        body = [layers.Dense(32, activation="tanh") for _ in range(depth)]
        model = compiled(keras.Sequential([keras.Input((32,)), *body]))
        step = tf.function(functools.partial(gradients, model, plan), jit_compile=True)
        text = step.experimental_get_compiler_ir(tf.ones((64, 32)))(stage="optimized_hlo")
        counts.append(text.count(" tanh("))
    assert counts[0] == depth
    assert depth * 1.5 < counts[1] < depth * 2


def gradients(model, plan, x):
    with plan.applied(StepContext(Workload(model))), tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(x, training=True) ** 2)
    return tape.gradient(loss, model.trainable_variables)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.slow
def test_gradients_without_a_loss_stay_none(nested, recomputed):
    """An output that nothing is learnt from: its weights must not decay either."""

    def make():
        x = inputs = keras.Input((5,))
        for _ in range(6):
            x = layers.Dense(5, activation="relu")(x)
        side = layers.Dense(3, name="side")(layers.Dense(3)(x))
        x = layers.Dense(5, activation="relu")(layers.Dense(5, activation="relu")(x))
        model = keras.Model(inputs, {"main": layers.Dense(2, name="main")(x), "side": side})
        if nested:
            inputs = keras.Input((5,))
            model = keras.Model(inputs, {"main": layers.Dense(2)(model(inputs)["main"])})
        return compiled(model, keras.optimizers.AdamW(weight_decay=0.1), loss={"main": "mse"})

    assert_same(make, batches(ROWS[0], {"main": ROWS[1]}))
    assert recomputed


# -- choosing the parts ----------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 9, 16, 100])
def test_equal_layers_are_cut_into_about_the_square_root(count):
    parts = cuts([1] * count, [1] * count, None)
    assert [first for first, _ in parts] == [0, *(end for _, end in parts[:-1])]
    assert parts[-1][1] == count
    assert abs(len(parts) - count**0.5) <= 1 + count**0.5 / 4


def test_cuts_are_where_little_passes():
    live = [8, 8, 1, 8, 8, 1, 8, 8, 1, 8]
    assert {end for _, end in cuts([8] * 10, live, None)[:-1]} <= {3, 6, 9}


def test_cuts_are_the_best_of_all(rng):
    """Against trying every way to cut."""
    for _ in range(30):
        count = int(rng.integers(2, 9))
        costs, live = (rng.integers(1, 9, count).tolist() for _ in range(2))

        def kept(ends, costs=costs, live=live):
            spans = itertools.pairwise([0, *ends, len(costs)])
            return sum(live[e - 1] for e in ends) + max(sum(costs[a:b]) for a, b in spans)

        ways = [w for k in range(1, count) for w in itertools.combinations(range(1, count), k)]
        best = min(kept(way) for way in ways)
        found = kept([end for _, end in cuts(costs, live, None)[:-1]])
        assert found <= 1.35 * best


@pytest.mark.parametrize("segments", [0, 1, -3, 2.0, True, "4"])
def test_segments_must_be_a_number_above_one(segments):
    with pytest.raises(ValueError, match="`segments` must be None or a whole number above 1"):
        Recompute(segments)


def test_refusals():
    unbuilt = compiled(keras.Sequential([layers.Dense(3), layers.Dense(2)]))
    assert Recompute().unsupported(Workload(unbuilt)).kind is Refusal.CASE
    shallow = compiled(keras.Sequential([keras.Input((3,)), layers.Dense(2)]))
    assert Recompute().unsupported(Workload(shallow)).kind is Refusal.NO_USE
