"""FusedOptimizer within other optimizers, steps and strategies, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early
from optimized import (
    CPU,
    EXACT,
    SERVED,
    Trained,
    assert_close,
    assert_same_as_keras,
    batches_of,
    dense_model,
)

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes.optimizer.fused_optimizer import FusedOptimizer

pytestmark = pytest.mark.usefixtures("unoptimised")
opt = keras.optimizers


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "adadelta"])
def test_sparse_gradients_are_keras_own(name, rng):
    """Repeated indices too, whose slices Keras squares one by one."""
    make, op = SERVED[name]

    def model():
        keras.utils.set_random_seed(5)
        tokens = keras.layers.Embedding(7, 4)
        model = keras.Sequential(
            [keras.Input((6,)), tokens, keras.layers.Flatten(), keras.layers.Dense(3)]
        )
        model.compile(make())
        return model

    batches = [
        (tf.constant(rng.integers(0, 5, (4, 6))), tf.cast(rng.normal(size=(4, 3)), tf.float32))
        for _ in range(4)
    ]
    fused = assert_same_as_keras(model, batches, rtol=2e-5)
    assert fused.ops() == {op: 2}  # the dense kernel and bias


@pytest.mark.parametrize("name", ["sgd", "adam", "rmsprop"])
def test_inside_a_loss_scale_optimizer(name, rng):
    make, op = SERVED[name]
    batches = batches_of(rng, dtype="float64")
    overflow = (batches[2][0], batches[2][1] * np.inf)
    batches = [*batches[:2], overflow, *batches[2:]]

    def model():
        return dense_model(
            opt.LossScaleOptimizer(make(), initial_scale=128.0, dynamic_growth_steps=2),
            dtype="float64",
            auto_scale_loss=False,
        )

    fused = assert_same_as_keras(model, batches, **EXACT)
    assert fused.ops() == {op: 2}
    # One of the six steps overflowed and was not taken.
    assert int(fused.model.optimizer.inner_optimizer.iterations) == 5


@pytest.mark.skipif(not hasattr(opt, "MultiOptimizer"), reason="this Keras has none")
def test_inside_a_multi_optimizer(rng):
    def model():
        adam, sgd = opt.Adam(0.01), opt.SGD(0.1)
        return dense_model(
            opt.MultiOptimizer(lambda variable: adam if "kernel" in variable.path else sgd)
        )

    fused = assert_same_as_keras(model, batches_of(rng), rtol=2e-5)
    assert fused.ops() == {"ResourceApplyAdam": 1, "ResourceApplyGradientDescent": 1}


def test_two_applies_in_one_step_are_two_iterations(rng):
    """Powers of beta are shared between variables, but not between applies."""

    def make(fused):
        model = dense_model(opt.Adam(0.05), "float64")

        def step(x, y):
            for _ in range(2):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(model(x) - y))
                variables = model.trainable_variables
                gradients = tape.gradient(loss, [v.value for v in variables])
                model.optimizer.apply(gradients, variables)

        return Trained(model, fused, step)

    batches = batches_of(rng, count=3, dtype="float64")
    plain, fused = make(False).run(batches), make(True).run(batches)
    assert_close(fused.state(), plain.state(), **EXACT)
    assert fused.ops() == {"ResourceApplyAdam": 4}


@pytest.mark.parametrize("name", ["adam", "rmsprop"])
def test_under_a_strategy(name, rng):
    make, op = SERVED[name]
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    batches = batches_of(rng, count=3)

    def run(fused):
        with strategy.scope():
            trained = Trained(dense_model(make()), fused)
        step = trained.function
        trained.function = tf.function(lambda *batch: strategy.run(step, batch), autograph=False)
        return trained.run(batches)

    plain, fused = run(False), run(True)
    assert_close(fused.state(), plain.state(), rtol=2e-5)
    # RMSprop's op wants a slot more, which a strategy would want for each replica.
    assert fused.ops() == ({} if name == "rmsprop" else {op: 2})


# RMSprop without momentum


def test_scratch_is_not_the_users(rng):
    model = dense_model(opt.RMSprop(0.01))
    fused = Trained(model, fused=True)
    model.optimizer.build(model.trainable_variables)
    before = [v.path for v in model.optimizer.variables], [v.path for v in model.weights]
    fused.run(batches_of(rng, count=1, size=4))
    fused.run(batches_of(rng, count=1, size=7))  # another trace
    assert ([v.path for v in model.optimizer.variables], [v.path for v in model.weights]) == before
    assert len(fused.context.scratch["fused_optimizer"]) == 2


def test_a_nan_does_not_stay_in_the_scratch(rng):
    """After a bad step whose state was put back, the next ones are as in Keras."""
    batches = batches_of(rng)
    plain = Trained(dense_model(opt.RMSprop(0.01)), False).run(batches[:1])
    fused = Trained(dense_model(opt.RMSprop(0.01)), True).run(batches[:1])
    good = [v.numpy() for v in fused.variables()]
    fused.run([(batches[1][0] * np.nan, batches[1][1])])
    assert np.isnan(fused.model.weights[0].numpy()).any()
    for variable, value in zip(fused.variables(), good, strict=True):
        variable.assign(value)
    assert_close(fused.run(batches[1:]).state(), plain.run(batches[1:]).state(), rtol=2e-6)


@pytest.mark.parametrize("name", ["momentum", "amsgrad", "adamax", "rmsprop", "adadelta"])
def test_bad_gradients_spread_as_in_keras(name, rng):
    """Weights are NaN where Keras's are, so that nobody trains on unawares."""
    runs = [Trained(dense_model(SERVED[name][0]()), fused) for fused in (False, True)]
    start = [v.numpy() for v in runs[0].variables()]
    for bad in (np.nan, np.inf, -np.inf):
        batches = batches_of(rng)
        batches[2] = (batches[2][0], batches[2][1] + [[bad, 0.0, 0.0]])
        for run in runs:
            for variable, value in zip(run.variables(), start, strict=True):
                variable.assign(value)
            run.run(batches)
        plain, fused = (run.model.get_weights() for run in runs)
        assert_close(fused, plain, rtol=2e-5, atol=1e-5)
        assert np.isnan(fused[0][:, 0]).all()
        assert np.isfinite(fused[0][:, 1:]).all()


# Who is served


class Renamed(opt.Adam):
    pass


class OwnUpdate(opt.Adam):
    def update_step(self, gradient, variable, learning_rate):
        super().update_step(2.0 * gradient, variable, learning_rate)


class OwnAssign(opt.SGD):
    def assign_sub(self, variable, value):
        super().assign_sub(variable, 2.0 * value)


class OwnApply(opt.Adam):
    def apply(self, grads, trainable_variables=None):
        return super().apply([2.0 * g for g in grads], trainable_variables)


class Conditional(opt.Adam):
    """Updates each variable inside a condition of its own."""

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        for gradient, variable in zip(grads, trainable_variables, strict=True):
            one = [gradient], [variable], learning_rate
            tf.cond(
                tf.reduce_any(gradient != 0),
                lambda one=one: opt.Adam._backend_update_step(self, *one),
                lambda: None,
            )


def test_updates_inside_conditions(rng):
    batches = batches_of(rng, dtype="float64")
    fused = assert_same_as_keras(
        lambda: dense_model(Conditional(0.01), "float64"), batches, **EXACT
    )
    assert fused.ops() == {"ResourceApplyAdam": 2}


def test_a_subclass_that_overrides_nothing_is_served(rng):
    fused = assert_same_as_keras(lambda: dense_model(Renamed(0.01)), batches_of(rng), rtol=2e-5)
    assert fused.ops() == {"ResourceApplyAdam": 2}


def test_a_subclass_that_overrides_apply_keeps_it(rng):
    fused = assert_same_as_keras(lambda: dense_model(OwnApply(0.01)), batches_of(rng), rtol=2e-5)
    assert fused.ops() == {"ResourceApplyAdam": 2}


UNSERVED = [opt.Adagrad, opt.Ftrl, opt.Nadam, opt.Lion, opt.Lamb, OwnUpdate, OwnAssign]


def test_others_are_refused_by_name():
    for kind in UNSERVED:
        for optimizer in (kind(0.01), opt.LossScaleOptimizer(kind(0.01))):
            unsupported = FusedOptimizer().unsupported(Workload(dense_model(optimizer), device=CPU))
            assert unsupported.kind is Refusal.CASE and kind.__name__ in unsupported.cause
            assert "Adam" in unsupported.remedy


@pytest.mark.parametrize("kind", [opt.Adagrad, OwnUpdate, OwnAssign])
def test_others_are_left_alone(kind, rng):
    batches = batches_of(rng, count=2)
    fused = assert_same_as_keras(lambda: dense_model(kind(0.01)), batches, rtol=0.0, atol=0.0)
    assert not fused.ops()


def test_an_update_step_that_the_user_replaced_is_left_alone():
    model = dense_model(opt.Adam())
    vars(model.optimizer)["update_step"] = mine = lambda gradient, variable, learning_rate: None
    workload = Workload(model, device=CPU)
    with FusedOptimizer().applied(StepContext(workload)):
        assert model.optimizer.update_step is mine
    assert FusedOptimizer().unsupported(workload).kind is Refusal.CASE


def test_a_model_without_an_optimizer_is_refused():
    unsupported = FusedOptimizer().unsupported(Workload(dense_model(None), device=CPU))
    assert unsupported.kind is Refusal.CASE and "optimizer" in unsupported.cause


def test_one_optimizer_that_can_be_served_is_enough():
    model = dense_model(opt.Adagrad())
    model.second_optimizer = opt.Adam()
    workload = Workload(model, device=CPU)
    assert FusedOptimizer().unsupported(workload) is None
    with FusedOptimizer().applied(StepContext(workload)):
        assert "update_step" not in vars(model.optimizer)
        assert "update_step" in vars(model.second_optimizer)


@pytest.mark.parametrize("wrap", [lambda o: o, opt.LossScaleOptimizer])
def test_nothing_is_left_behind(wrap, rng):
    inner = opt.RMSprop(0.01)
    model = dense_model(wrap(inner), auto_scale_loss=False)
    workload = Workload(model, device=CPU)
    Trained(model, fused=False).run(batches_of(rng, count=1))  # Keras's own marks

    def marks():
        return [{k: id(v) for k, v in vars(o).items()} for o in (inner, model.optimizer)]

    before = marks()
    fused = Trained(model, fused=True).run(batches_of(rng, count=1))
    assert fused.ops() == {"ResourceApplyRMSProp": 2}
    assert marks() == before
    with (
        pytest.raises(RuntimeError, match="inside"),
        FusedOptimizer().applied(StepContext(workload)),
    ):
        assert "update_step" in vars(inner)
        raise RuntimeError("inside")
    assert FusedOptimizer().unsupported(workload) is None
    assert marks() == before


@pytest.mark.parametrize("steps_per_execution", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_through_keras_own_train_function(steps_per_execution, rng):
    x = rng.normal(size=(14, 6)).astype("float32")
    y = rng.normal(size=(14, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat(2)
    states = []
    for passes in ((), (FusedOptimizer(),)):
        model = dense_model(opt.Adam(0.01), steps_per_execution=steps_per_execution)
        built_early(model)
        workload = Workload(model, device=CPU)
        with Plan(passes).applied(StepContext(workload)):
            model.make_train_function(force=True)
            iterator = iter(data)
            for _ in range(8 // steps_per_execution):
                model.train_function(iterator)
        states.append([v.numpy() for v in (*model.weights, *model.optimizer.variables)])
    assert_close(states[1], states[0], rtol=2e-5)
