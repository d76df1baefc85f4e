"""FusedOptimizer against Keras's own optimizers, which are the plain reference."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed, with_slow
from optimized import (
    EXACT,
    SERVED,
    Trained,
    assert_close,
    assert_same_as_keras,
    batches_of,
    dense_model,
)

from tfaccel.core.plan import Plan
from tfaccel.core.unsupported import Refusal
from tfaccel.passes.optimizer.fused_optimizer import FusedOptimizer

pytestmark = pytest.mark.usefixtures("unoptimised")
opt = keras.optimizers


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


@pytest.mark.parametrize(
    "name",
    with_slow(
        ["nesterov", "adam", "rmsprop_centered", "adadelta"], ("nesterov", "adadelta", "adam")
    ),
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


def test_the_plan_survives_json():
    plan = Plan((FusedOptimizer(),))
    assert Plan.from_json(plan.to_json()) == plan
