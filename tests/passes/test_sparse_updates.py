"""The updates of embedding tables by FusedOptimizer against Keras's own."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed

import tfaccel
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes.optimizer.fused_optimizer import FusedOptimizer
from tfaccel.system.device import Device

pytestmark = pytest.mark.usefixtures("unoptimised")
opt = keras.optimizers
CPU = Device("CPU", "test")
EXACT = {"rtol": 1e-12, "atol": 1e-14}  # in float64, where nothing hides in a tolerance
ROWS = 9

SERVED = {
    "momentum": lambda **k: opt.SGD(0.1, momentum=0.9, **k),
    "nesterov": lambda **k: opt.SGD(0.1, momentum=0.9, nesterov=True, **k),
    "adam": lambda **k: opt.Adam(0.01, **k),
    "adam_options": lambda **k: opt.Adam(0.01, beta_1=0.7, beta_2=0.95, epsilon=0.1, **k),
    "amsgrad": lambda **k: opt.Adam(0.01, amsgrad=True, **k),
    "adamw": lambda **k: opt.AdamW(0.01, weight_decay=0.1, **k),
    "adagrad": lambda **k: opt.Adagrad(0.1, **k),
}
OPTIONS = {
    "weight_decay": {"weight_decay": 0.05},
    "clipnorm": {"clipnorm": 0.05},
    "global_clipnorm": {"global_clipnorm": 0.05},
    "clipvalue": {"clipvalue": 0.01},
    "use_ema": {"use_ema": True, "ema_momentum": 0.6},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.6, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 2},
}


def table_model(optimizer, dtype="float64", jit_compile=False, **table):
    keras.utils.set_random_seed(5)
    ids = keras.Input((6,), dtype="int32")
    vectors = keras.layers.Embedding(ROWS, 4, dtype=dtype, **table)
    x = keras.layers.Flatten(dtype=dtype)(vectors(ids))
    model = keras.Model(ids, keras.layers.Dense(3, dtype=dtype)(x))
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    return model


def shared_model(optimizer):
    """One table that is looked into twice, and one that is not trained."""
    keras.utils.set_random_seed(5)
    ids = keras.Input((6,), dtype="int32")
    table = keras.layers.Embedding(ROWS, 4, dtype="float64")
    fixed = keras.layers.Embedding(ROWS, 4, dtype="float64", trainable=False)
    parts = [table(ids[:, :3]), table(ids[:, 3:]), fixed(ids[:, :3])]
    x = keras.layers.Flatten(dtype="float64")(keras.layers.Concatenate(dtype="float64")(parts))
    model = keras.Model(ids, keras.layers.Dense(3, dtype="float64")(x))
    model.compile(optimizer, "mse")
    return model


def batches_of(rng, count=5, size=4, low=-3):
    """Ids with repeated ones, of which some count from the end, and rows that are never met."""
    ids = rng.integers(low, 4, (count, size, 6)).astype("int32")
    return [(tf.constant(i), tf.constant(rng.normal(size=(size, 3)))) for i in ids]


class Trained:
    """A model, and steps of it under the pass or by Keras alone."""

    def __init__(self, model, fused, jit_compile=False):
        self.model = model
        model.optimizer.build(model.trainable_variables)
        self.context = StepContext(Workload(model, device=CPU))
        plan = Plan((FusedOptimizer(),) if fused else ())

        @tf.function(jit_compile=jit_compile, autograph=False, reduce_retracing=True)
        def step(x, y):
            with plan.applied(self.context):
                self._step(x, y)

        self.step = step

    def _step(self, x, y):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            output = self.model(x)
            loss = tf.reduce_mean(tf.square(output - tf.cast(y, output.dtype)))
            loss += sum(tf.cast(extra, loss.dtype) for extra in self.model.losses)
            loss = self.model.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, [v.value for v in variables])
        self.model.optimizer.apply(gradients, variables)

    def run(self, batches):
        for batch in batches:
            self.step(*batch)
        return self

    def state(self):
        variables = [*self.model.weights, *self.model.optimizer.variables]
        return [tf.cast(v.value, tf.float64).numpy() for v in variables]

    def ops(self):
        counts = collections.Counter()
        for concrete in self.step._list_all_concrete_functions():
            definition = concrete.graph.as_graph_def()
            nodes = [
                *definition.node,
                *(n for f in definition.library.function for n in f.node_def),
            ]
            counts.update(node.op for node in nodes)
        return counts


def assert_close(actual, expected, rtol, atol):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


def assert_same_as_keras(make_model, batches, tolerance=None, **options):
    plain = Trained(make_model(), fused=False, **options).run(batches)
    fused = Trained(make_model(), fused=True, **options).run(batches)
    assert_close(fused.state(), plain.state(), **(tolerance or EXACT))
    return fused


@pytest.mark.parametrize("name", SERVED)
def test_every_served_optimizer(name, rng):
    fused = assert_same_as_keras(lambda: table_model(SERVED[name]()), batches_of(rng))
    ops = fused.ops()
    assert ops["UnsortedSegmentSum"] == 0  # by which Keras makes a whole table of slices
    if name == "adagrad":
        assert ops["ResourceScatterAdd"] == ops["ResourceScatterSub"] == 1
    else:
        assert ops["InplaceAdd"] == 2
        # After which TensorFlow would copy the variable in each read.
        assert not any(op.startswith("ResourceScatter") for op in ops)


@pytest.mark.parametrize("name", ["momentum", "amsgrad", "adagrad"])
def test_in_float32(name, rng):
    assert_same_as_keras(
        lambda: table_model(SERVED[name](), "float32"),
        batches_of(rng),
        {"rtol": 2e-5, "atol": 5e-7},
    )


@crossed(("option", "name"), [*OPTIONS], ["adam", "momentum", "adagrad"])
def test_options_outside_update_step_stay_right(option, name, rng):
    make = SERVED[name]
    assert_same_as_keras(lambda: table_model(make(**OPTIONS[option])), batches_of(rng))


def test_rows_that_are_not_met_go_on_by_their_averages(rng):
    fused = Trained(table_model(SERVED["adam"]()), fused=True)
    first, second = batches_of(rng, count=2, low=0)
    fused.run([(first[0] * 0 + 7, first[1])])
    before = fused.model.layers[1].embeddings.numpy()[7]
    fused.run([second])
    assert not np.allclose(fused.model.layers[1].embeddings.numpy()[7], before, atol=1e-4)


@pytest.mark.parametrize("name", ["adam", "momentum", "adagrad"])
def test_a_table_that_is_used_twice_and_one_that_is_not_trained(name, rng):
    assert_same_as_keras(lambda: shared_model(SERVED[name]()), batches_of(rng))


@pytest.mark.parametrize("name", ["adam", "adagrad"])
def test_a_table_with_masks_and_a_constraint(name, rng):
    def make():
        constraint = keras.constraints.MaxNorm(0.05)
        return table_model(SERVED[name](), mask_zero=True, embeddings_constraint=constraint)

    assert_same_as_keras(make, batches_of(rng, low=0))


def test_a_regularized_table_has_a_dense_gradient(rng):
    fused = assert_same_as_keras(
        lambda: table_model(SERVED["adam"](), embeddings_regularizer="l2"),
        batches_of(rng),
    )
    assert fused.ops()["ResourceApplyAdam"] == 3 and fused.ops()["InplaceAdd"] == 0


def test_in_16_bits_with_tables_in_float32(rng):
    fused = assert_same_as_keras(
        lambda: table_model(SERVED["adam"](), "mixed_bfloat16"),
        batches_of(rng),
        {"rtol": 2e-2, "atol": 2e-3},
    )
    assert fused.ops()["InplaceAdd"] == 2


def test_batches_of_several_sizes(rng):
    batches = [*batches_of(rng, 2), *batches_of(rng, 1, size=1), *batches_of(rng, 2, size=3)]
    fused = assert_same_as_keras(lambda: table_model(SERVED["adam"]()), batches)
    assert len(fused.step._list_all_concrete_functions()) == 2


def test_inside_a_loss_scale_optimizer(rng):
    batches = batches_of(rng)
    batches.insert(2, (batches[2][0], batches[2][1] * np.inf))

    def make():
        scaled = opt.LossScaleOptimizer(SERVED["adam"](), initial_scale=128.0)
        return table_model(scaled)

    assert_same_as_keras(make, batches)


def test_under_xla_keras_s_update_is_one_loop(rng):
    fused = assert_same_as_keras(
        lambda: table_model(SERVED["adam"](), jit_compile=True),
        batches_of(rng, count=3),
        {"rtol": 1e-10, "atol": 1e-12},
        jit_compile=True,
    )
    assert fused.ops()["InplaceAdd"] == 0


@pytest.mark.parametrize("make", [SERVED["adam"], SERVED["amsgrad"]], ids=["adam", "amsgrad"])
def test_a_step_that_another_pass_has_compiled(make, rng):
    """XLA knows neither ops that change rows in place nor AMSGrad's."""
    x, y = rng.integers(0, 4, (8, 6)), rng.normal(size=(8, 3))
    models = [table_model(make()) for _ in range(2)]
    plain, fused = models
    plain.fit(x, y, batch_size=4, shuffle=False, verbose=0)
    accel = tfaccel.AccelCallback(plan=["fused_optimizer", "xla"], verbose=0)
    fused.fit(x, y, batch_size=4, shuffle=False, verbose=0, callbacks=[accel])
    assert {item.name for item in accel.plan.passes} == {"fused_optimizer", "xla"}
    assert_close(fused.get_weights(), plain.get_weights(), rtol=1e-6, atol=1e-8)


def test_a_kept_tensor_stays_what_it_was(rng):
    """Rows change in place, but never in a tensor that somebody has from before."""
    trained = Trained(table_model(SERVED["adam"]()), fused=True)
    variables = [*trained.model.weights, *trained.model.optimizer.variables]
    for batch in batches_of(rng):
        kept = [variable.value.read_value() for variable in variables]
        expected = [tensor.numpy().copy() for tensor in kept]
        trained.run([batch])
        assert_close([tensor.numpy() for tensor in kept], expected, rtol=0, atol=0)


def test_the_zeros_are_shared_and_stay_zeros(rng):
    trained = Trained(table_model(SERVED["adam"]()), fused=True).run(batches_of(rng))
    (zeros,) = trained.context.scratch["fused_optimizer"].values()
    assert zeros.shape == (ROWS, 4) and not zeros.numpy().any()


# Keras's Adagrad itself fails on a NaN where slices repeat.
@pytest.mark.parametrize("name", ["adam", "momentum"])
def test_bad_gradients_spread_as_in_keras(name, rng):
    batches = batches_of(rng, low=0)
    batches[2] = (batches[2][0], batches[2][1] * [[np.nan], [1], [1], [1]])
    fused = assert_same_as_keras(lambda: table_model(SERVED[name]()), batches)
    assert np.isnan(fused.model.layers[1].embeddings.numpy()).any()


def test_a_strategy_keeps_keras_own(rng):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])

    def run(fused):
        with strategy.scope():
            trained = Trained(table_model(SERVED["adam"]()), fused)
        step = trained.step
        trained.step = tf.function(lambda *batch: strategy.run(step, batch), autograph=False)
        return trained.run(batches)

    batches = batches_of(rng, count=3)
    assert_close(run(True).state(), run(False).state(), **EXACT)


@pytest.mark.parametrize("kind", [opt.Adamax, opt.RMSprop, opt.Lion, opt.SGD])
def test_sparse_gradients_of_others_are_keras_own(kind, rng):
    fused = assert_same_as_keras(lambda: table_model(kind(0.01)), batches_of(rng))
    assert fused.ops()["InplaceAdd"] == 0


class OwnUpdate(opt.Adagrad):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(2.0 * gradient, variable, learning_rate)


@pytest.mark.parametrize(
    "optimizer", [OwnUpdate(0.1), opt.Adagrad(0.1, epsilon=0.0)], ids=["own", "no_epsilon"]
)
def test_an_adagrad_that_is_refused(optimizer):
    unsupported = FusedOptimizer().unsupported(Workload(table_model(optimizer), device=CPU))
    assert unsupported.kind is Refusal.CASE and type(optimizer).__name__ in unsupported.cause


def test_adagrad_is_for_models_with_a_table_alone():
    tables = Workload(table_model(opt.Adagrad()), device=CPU)
    assert FusedOptimizer().unsupported(tables) is None
    fixed = Workload(table_model(opt.Adagrad(), trainable=False), device=CPU)
    assert FusedOptimizer().unsupported(fixed).kind is Refusal.CASE


def test_a_model_of_tables_is_expected_to_gain_most():
    prior = FusedOptimizer().prior(Workload(table_model(opt.Adam()), device=CPU))
    fixed = Workload(table_model(opt.Adam(), trainable=False), device=CPU)
    assert prior.gain < 1.5  # the table is smaller than the layer above it
    assert FusedOptimizer().prior(fixed).gain == prior.gain
