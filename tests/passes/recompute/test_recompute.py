"""Recompute against the untouched step: the same losses, gradients and variables."""

import functools

import keras
import pytest
import tensorflow as tf
from steps import ROWS, TOKENS, assert_same, batches, compiled, normal

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.passes import XLA, FusedNorm, FusedOptimizer, MixedPrecision
from tfaccel.passes.recompute.recompute import Recompute

layers = keras.layers


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
LONG = ("masked_text", "nested_backbone", "frozen_backbone", "in_one_layer")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in PURE]
)
def test_it_is_the_same_training(name, recomputed):
    make, data = PURE[name]
    assert_same(make, batches(*data))
    assert recomputed, "nothing was recomputed"


@pytest.mark.parametrize(
    "segments", [100, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3, 5))]
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
