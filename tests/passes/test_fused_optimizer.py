"""FusedOptimizer against Keras's own optimizers, which are the plain reference."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed, with_slow

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.passes.optimizer.fused_optimizer import FusedOptimizer
from tfaccel.system.device import Device

pytestmark = pytest.mark.usefixtures("unoptimised")
opt = keras.optimizers
CPU = Device("CPU", "test")

# In float64 nothing hides in a tolerance.
EXACT = {"rtol": 1e-12, "atol": 1e-14}
# Each optimizer that is served, and the op that does its work.
SERVED = {
    "sgd": (lambda **k: opt.SGD(0.1, **k), "ResourceApplyGradientDescent"),
    "momentum": (lambda **k: opt.SGD(0.1, momentum=0.9, **k), "ResourceApplyKerasMomentum"),
    "nesterov": (
        lambda **k: opt.SGD(0.1, momentum=0.9, nesterov=True, **k),
        "ResourceApplyKerasMomentum",
    ),
    "adam": (lambda **k: opt.Adam(0.01, **k), "ResourceApplyAdam"),
    "amsgrad": (lambda **k: opt.Adam(0.01, amsgrad=True, **k), "ResourceApplyAdamWithAmsgrad"),
    "adam_options": (
        lambda **k: opt.Adam(0.01, beta_1=0.7, beta_2=0.95, epsilon=0.1, **k),
        "ResourceApplyAdam",
    ),
    "adamw": (lambda **k: opt.AdamW(0.01, weight_decay=0.1, **k), "ResourceApplyAdam"),
    "adamax": (lambda **k: opt.Adamax(0.01, **k), "ResourceApplyAdaMax"),
    "rmsprop": (lambda **k: opt.RMSprop(0.01, **k), "ResourceApplyRMSProp"),
    "rmsprop_momentum": (
        lambda **k: opt.RMSprop(0.01, rho=0.8, momentum=0.7, **k),
        "ResourceApplyRMSProp",
    ),
    "rmsprop_centered": (
        lambda **k: opt.RMSprop(0.01, centered=True, **k),
        "ResourceApplyCenteredRMSProp",
    ),
    "rmsprop_centered_momentum": (
        lambda **k: opt.RMSprop(0.01, centered=True, momentum=0.7, epsilon=1e-3, **k),
        "ResourceApplyCenteredRMSProp",
    ),
    "adadelta": (lambda **k: opt.Adadelta(0.5, **k), "ResourceApplyAdadelta"),
}
FUSED_OPS = {op for _, op in SERVED.values()}


def dense_model(optimizer, dtype="float32", constraint=None, **compile_options):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [
            keras.Input((6,), dtype=dtype),
            keras.layers.Dense(3, "tanh", dtype=dtype, kernel_constraint=constraint),
        ]
    )
    model.compile(optimizer, "mse", **compile_options)
    return model


def batches_of(rng, count=5, size=4, dtype="float32"):
    x = rng.normal(size=(count, size, 6))
    y = rng.normal(size=(count, size, 3))
    return [(tf.cast(a, dtype), tf.cast(b, dtype)) for a, b in zip(x, y, strict=True)]


class Trained:
    """A model and a traced step of its optimizer, by a pass or by Keras alone."""

    def __init__(self, model, fused, step=None, jit_compile=False):
        self.model = model
        # In a trace Keras would make the variables, and TensorFlow would trace again.
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self.context = StepContext(Workload(model, device=CPU))
        plan = Plan((FusedOptimizer(),) if fused else ())
        step = step or self.plain_step

        @tf.function(jit_compile=jit_compile, autograph=False, reduce_retracing=True)
        def function(*batch):
            with plan.applied(self.context):
                step(*batch)

        self.function = function

    def plain_step(self, x, y):
        model, optimizer = self.model, self.model.optimizer
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(x) - y))
            loss = optimizer.scale_loss(loss)
        variables = model.trainable_variables
        optimizer.apply(tape.gradient(loss, [v.value for v in variables]), variables)

    def run(self, batches):
        for batch in batches:
            self.function(*batch)
        return self

    def variables(self):
        return [*self.model.weights, *self.model.optimizer.variables]

    def state(self):
        return [tf.cast(v.value, tf.float64).numpy() for v in self.variables()]

    def ops(self):
        """How often each fused op occurs in the traced graphs, branches included."""
        counts = collections.Counter()
        for concrete in self.function._list_all_concrete_functions():
            definition = concrete.graph.as_graph_def()
            nodes = [*definition.node]
            for function in definition.library.function:
                nodes += function.node_def
            counts.update(node.op for node in nodes if node.op in FUSED_OPS)
        return counts


def assert_close(actual, expected, rtol=1e-6, atol=1e-6):
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=atol)


def assert_same_as_keras(make_model, batches, rtol=1e-6, atol=1e-6, **options):
    """Both ways of training the same model agree; returns the fused one."""
    plain = Trained(make_model(), fused=False, **options).run(batches)
    fused = Trained(make_model(), fused=True, **options).run(batches)
    assert not plain.ops()
    assert_close(fused.state(), plain.state(), rtol, atol)
    return fused


# In float32 one of each family: what an op rounds otherwise is tested below.
IN_FLOAT32 = ("sgd", "momentum", "adam", "adamax", "rmsprop_centered_momentum", "adadelta")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, "float64") for name in SERVED),
        *(
            pytest.param(name, "float32", marks=() if name in IN_FLOAT32 else pytest.mark.slow)
            for name in SERVED
        ),
    ],
)
def test_every_served_optimizer(name, dtype, rng):
    make, op = SERVED[name]
    # Adam's velocity: 1 - 0.999 is 1.3e-5 off in float32, as the op has it.
    rtol = 2e-5 if op.startswith("ResourceApplyAdam") else 2e-6
    tolerance = {"rtol": rtol, "atol": 5e-7} if dtype == "float32" else EXACT
    batches = batches_of(rng, dtype=dtype)
    fused = assert_same_as_keras(lambda: dense_model(make(), dtype), batches, **tolerance)
    assert fused.ops() == {op: 2}


# Hyperparameters near 1: what an op subtracts in float32 is 1e-5 off.
NEAR_ONE = {
    "adam": lambda: opt.Adam(1.0, beta_1=0.999),
    "amsgrad": lambda: opt.Adam(1.0, amsgrad=True),
    "adamax": lambda: opt.Adamax(1.0, beta_1=0.999),
    "rmsprop": lambda: opt.RMSprop(1.0, rho=0.999, momentum=0.9),
    "rmsprop_centered": lambda: opt.RMSprop(1.0, rho=0.999, centered=True),
    "adadelta": lambda: opt.Adadelta(1.0, rho=0.999),
}


@pytest.mark.parametrize("name", NEAR_ONE)
def test_weights_move_by_keras_s_maths_to_rounding(name, rng):
    gradients = rng.normal(size=(20, 6, 3)).astype("float32")

    def moved(fused):
        model = dense_model(NEAR_ONE[name]())
        kernel = model.layers[0].kernel
        kernel.assign(tf.zeros(kernel.shape))  # whose rounding then counts for little

        def step(gradient):
            model.optimizer.apply([gradient], [kernel])

        model.optimizer.build([kernel])
        trained = Trained(model, fused, step).run([(tf.constant(g),) for g in gradients])
        assert bool(trained.ops()) == fused
        return kernel.numpy()

    expected = moved(fused=False)
    error = np.linalg.norm(moved(fused=True) - expected) / np.linalg.norm(expected)
    assert error < 1e-6


# What Keras does around `update_step`.
OPTIONS = {
    "weight_decay": {"weight_decay": 0.05},
    "clipnorm": {"clipnorm": 0.05},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.02},
    "use_ema": {"use_ema": True, "ema_momentum": 0.6},
    "ema_overwrite": {"use_ema": True, "ema_momentum": 0.6, "ema_overwrite_frequency": 2},
    "accumulation": {"gradient_accumulation_steps": 2},
    "loss_scale_factor": {"loss_scale_factor": 64.0},
}


# It is Keras's code for all optimizers.
@crossed(("option", "name"), [*OPTIONS], ["adam", "momentum", "rmsprop"])
def test_options_outside_update_step_stay_right(option, name, rng):
    make, op = SERVED[name]
    batches = batches_of(rng, dtype="float64")
    fused = assert_same_as_keras(
        lambda: dense_model(make(**OPTIONS[option]), "float64"), batches, **EXACT
    )
    assert fused.ops() == {op: 2}
    # The option does something, or the comparison would prove nothing; an average
    # that is kept and a scale that is undone leave the weights as they were.
    if option not in ("use_ema", "loss_scale_factor"):
        without = Trained(dense_model(make(), "float64"), fused=True).run(batches)
        assert not np.allclose(without.state()[0], fused.state()[0], rtol=1e-3)


def test_excluded_from_weight_decay(rng):
    def make():
        optimizer = opt.AdamW(0.01, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return dense_model(optimizer, "float64")

    assert_same_as_keras(make, batches_of(rng, dtype="float64"), **EXACT)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_learning_rate_schedule(name, rng):
    kind = type(SERVED[name][0]())

    def make():
        return dense_model(kind(opt.schedules.ExponentialDecay(0.1, 2, 0.5)), "float64")

    fused = assert_same_as_keras(make, batches_of(rng, dtype="float64"), **EXACT)
    assert fused.ops() == {SERVED[name][1]: 2}


@pytest.mark.parametrize("name", ["momentum", "adam"])
def test_a_learning_rate_that_is_set_between_steps(name, rng):
    make, _ = SERVED[name]
    batches = batches_of(rng, dtype="float64")
    runs = [
        Trained(dense_model(make(), "float64"), fused).run(batches[:2]) for fused in (False, True)
    ]
    for run in runs:
        run.model.optimizer.learning_rate = 0.5
        run.run(batches[2:])
    assert_close(runs[1].state(), runs[0].state(), **EXACT)


def test_a_constraint(rng):
    def make():
        return dense_model(opt.SGD(1.0), constraint=keras.constraints.NonNeg())

    fused = assert_same_as_keras(make, batches_of(rng))
    assert (fused.model.weights[0].numpy() >= 0).all()
    assert (fused.model.weights[0].numpy() == 0).any()


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


@pytest.mark.parametrize("name, dtype", [("adam", "bfloat16"), ("momentum", "float16")])
def test_16_bit_variables_keep_keras(name, dtype, rng):
    make, _ = SERVED[name]
    batches = batches_of(rng, count=3, dtype=dtype)
    fused = assert_same_as_keras(lambda: dense_model(make(), dtype), batches, rtol=0.0, atol=0.0)
    assert not fused.ops()
    unsupported = FusedOptimizer().unsupported(fused.context.workload)
    assert unsupported.kind is Refusal.DTYPE and dtype in unsupported.cause


def test_16_bit_gradients_of_float32_variables(rng):
    def make():
        model = dense_model(opt.SGD(0.1, momentum=0.9))
        for layer in model.layers:
            layer.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
        return model

    fused = assert_same_as_keras(make, batches_of(rng, dtype="bfloat16"), rtol=1e-5)
    assert fused.ops() == {"ResourceApplyKerasMomentum": 2}


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


@pytest.mark.parametrize(
    "name",
    with_slow(["nesterov", "adam", "rmsprop_centered", "adadelta"], ("nesterov", "adadelta")),
)
def test_xla(name, rng):
    make, op = SERVED[name]
    batches = batches_of(rng, count=3)

    def model():
        return dense_model(make(), jit_compile=True)

    fused = assert_same_as_keras(model, batches, rtol=2e-5, jit_compile=True)
    assert fused.ops() == {op: 2}


def test_xla_has_no_op_for_amsgrad(rng):
    def model():
        return dense_model(opt.Adam(0.01, amsgrad=True), jit_compile=True)

    fused = assert_same_as_keras(model, batches_of(rng, count=3), jit_compile=True)
    assert not fused.ops()
    unsupported = FusedOptimizer().unsupported(fused.context.workload)
    assert "amsgrad" in unsupported.cause and "jit_compile" in unsupported.remedy


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


def test_the_plan_survives_json():
    plan = Plan((FusedOptimizer(),))
    assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("steps_per_execution", [1, 2])
def test_through_keras_own_train_function(steps_per_execution, rng):
    x = rng.normal(size=(14, 6)).astype("float32")
    y = rng.normal(size=(14, 3)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4).repeat(2)
    states = []
    for passes in ((), (FusedOptimizer(),)):
        model = dense_model(opt.Adam(0.01), steps_per_execution=steps_per_execution)
        workload = Workload(model, device=CPU)
        with Plan(passes).applied(StepContext(workload)):
            model.make_train_function(force=True)
            iterator = iter(data)
            for _ in range(8 // steps_per_execution):
                model.train_function(iterator)
        states.append([v.numpy() for v in (*model.weights, *model.optimizer.variables)])
    assert_close(states[1], states[0], rtol=2e-5)
