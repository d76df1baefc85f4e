"""Custom training loops: a step of the user's own, as fast as it can be, and nothing else."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from looped import (
    OPTIMIZER,
    Loop,
    Paced,
    accelerated,
    assert_alike,
    batches,
    make_model,
    path,
    plain,
    run,
)

import tfaccel


@pytest.mark.parametrize("plan", ["baseline", "auto"])
def test_without_a_plan_it_is_the_loop_bit_for_bit(plan):
    loop = Loop(built=False)  # as in most programs, its first trace makes the variables
    losses = run(accelerated(loop, plan))
    assert_alike(loop, losses, *plain(), exact=True)


@pytest.mark.parametrize("name", ["SGD", pytest.param("Adam", marks=pytest.mark.slow)])
def test_a_plan_that_is_given_runs_from_the_second_step_on(name):
    def optimizer():
        return getattr(keras.optimizers, name)(0.01)

    loop = Loop(optimizer())
    step = accelerated(loop, OPTIMIZER)
    losses = run(step)
    assert step.plan.names == ("fused_optimizer",)
    assert path(step) == ["OBSERVE", "RUN"]
    assert_alike(loop, losses, *plain(optimizer=optimizer()))
    step.finish()
    run(step, 1)
    assert int(loop.optimizer.iterations) == 7


def test_what_is_returned_is_what_the_function_returns():
    model = make_model()

    @tf.function
    def step(batch, *, scale=1.0, name=None):
        loss = tf.reduce_sum(model(batch["x"]))
        return (loss * scale, [tf.shape(batch["x"]), None]), tf.constant("text")

    fast = tfaccel.accelerate_step(step, OPTIMIZER, model=model, verbose=0)
    arrays = {"x": np.ones((8, 4), "float32")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # there is no optimizer
        for _ in range(3):
            expected = step(arrays, scale=2.0)
            found = fast(arrays, scale=2.0)
            tf.nest.assert_same_structure(expected, found)
            np.testing.assert_allclose(found[0][0], expected[0][0], rtol=1e-6)
            assert found[1].numpy() == b"text" and found[0][1][1] is None


def test_a_gan_has_two_models_and_two_optimizers():
    def train(fast):
        generator, critic = make_model(4), make_model(1, seed=2)
        optimizers = [keras.optimizers.Adam(0.01), keras.optimizers.SGD(0.02, momentum=0.5)]
        noise = keras.random.SeedGenerator(5)

        @tf.function
        def step(real):
            drawn = keras.random.normal(tf.shape(real), seed=noise)
            with tf.GradientTape(persistent=True) as tape:
                fake = critic(generator(drawn, training=True), training=True)
                true = critic(real, training=True)
                of_critic = tf.reduce_mean(tf.nn.softplus(fake) + tf.nn.softplus(-true))
                of_generator = tf.reduce_mean(tf.nn.softplus(-fake))
            losses = (of_generator, of_critic)
            for index, model in enumerate((generator, critic)):
                weights = model.trainable_variables
                optimizers[index].apply(tape.gradient(losses[index], weights), weights)
            return losses

        if fast:
            step = tfaccel.accelerate_step(
                step, OPTIMIZER, model=[generator, critic], optimizer=optimizers, verbose=0
            )
        losses = [[float(v) for v in step(x)] for x, _ in batches(6)]
        if fast:
            assert step.plan.names == ("fused_optimizer",)
        variables = [*generator.variables, *critic.variables, *optimizers[0].variables]
        return losses, [np.array(v) for v in variables]

    for left, right in zip(train(True), train(False), strict=True):
        for one, other in zip(left, right, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-6)


def test_a_loss_that_turns_nan_leads_back_to_the_original():
    loop = Loop()
    step = accelerated(loop, tfaccel.Plan((Paced(nan_from=5),)))
    with pytest.warns(RuntimeWarning, match="non-finite"):
        losses = run(step, 9)
    assert step.plan.is_baseline
    assert_alike(loop, losses, *plain(9))


def test_what_the_step_raises_is_raised_and_nothing_is_lost():
    def checked(loop):
        def step(x, y):
            tf.debugging.assert_less(tf.reduce_max(tf.abs(x)), 100.0)
            return loop.step(x, y)

        return tf.function(step)

    def train(step):
        losses = []
        for index, (x, y) in enumerate(batches(8)):
            if index in (0, 5):
                with pytest.raises(tf.errors.InvalidArgumentError):
                    step(x * 1000, y)
            losses.append({k: float(v) for k, v in step(x, y).items()})
        return losses

    loop, other = Loop(), Loop()
    step = tfaccel.accelerate_step(
        checked(loop), OPTIMIZER, model=loop.model, optimizer=loop.optimizer, verbose=0
    )
    with pytest.warns(RuntimeWarning, match="a step failed"):
        losses = train(step)
    assert_alike(loop, losses, other, train(checked(other)))


def test_a_plan_is_in_every_trace_and_batches_may_change_their_size():
    loop = Loop()
    step = accelerated(loop, OPTIMIZER)
    run(step, 3)
    traces = loop.traces
    for size in (8, 5, 8, 7, 3):
        run(step, 1, size)
    assert loop.traces == traces + 1  # for all other sizes
    assert step.plan.names == ("fused_optimizer",)


def test_a_plain_function_runs_as_it_is_unless_it_may_be_compiled():
    calls = []
    loop = Loop()

    def step(x, y):
        calls.append(1)
        return loop.step(x, y)

    settings = {"model": loop.model, "optimizer": loop.optimizer, "verbose": 0}
    fast = tfaccel.accelerate_step(step, OPTIMIZER, **settings)
    run(fast, 5)
    assert len(calls) == 5 and "plain Python function" in fast.report.note
    fast = tfaccel.accelerate_step(step, OPTIMIZER, compile=True, **settings)
    run(fast, 5)
    assert fast.plan.names == ("fused_optimizer",) and len(calls) < 10


def test_a_step_that_calls_other_compiled_functions_is_left_alone():
    loop = Loop()
    inner = tf.function(loop.step)
    step = tfaccel.accelerate_step(
        tf.function(lambda x, y: inner(x, y)),
        OPTIMIZER,
        model=loop.model,
        optimizer=loop.optimizer,
        verbose=0,
    )
    losses = run(step)
    assert "other tf.functions" in step.report.note and step.plan.is_baseline
    assert_alike(loop, losses, *plain(), exact=True)


def test_a_failure_of_tfaccel_is_one_warning(monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("it broke")

    monkeypatch.setattr("tfaccel.training.course.served", broken)
    loop = Loop()
    step = accelerated(loop, OPTIMIZER)
    with pytest.warns(UserWarning, match="it broke") as caught:
        losses = run(step)
    assert len(caught) == 1
    assert_alike(loop, losses, *plain(), exact=True)


def test_a_loop_under_a_strategy_is_left_alone():
    with tf.distribute.OneDeviceStrategy("CPU:0").scope():
        model = make_model()
        step = tf.function(lambda x: tf.reduce_sum(model(x)))
        step = tfaccel.accelerate_step(step, OPTIMIZER, model=model, verbose=0)
        assert np.isfinite(step(tf.ones((2, 4))))
    assert "OneDeviceStrategy" in step.report.note


def test_a_step_may_be_traced_by_an_outer_function():
    loop = Loop()
    step = accelerated(loop, OPTIMIZER)
    outer = tf.function(lambda x, y: step(x, y))
    losses = run(outer)
    assert_alike(loop, losses, *plain(), exact=True)


@pytest.mark.parametrize(
    "changed, error, match",
    [
        ({"model": None}, TypeError, "`model` must be .* Received: None"),
        ({"model": []}, TypeError, "`model` must be"),
        ({"optimizer": "sgd"}, TypeError, "`optimizer` must be .* Received: 'sgd'"),
        ({"steps": 0}, ValueError, "`steps` must be a positive whole number. Received: 0"),
        ({"compile": 1}, TypeError, "`compile` must be True or False. Received: 1"),
        ({"step": 3}, TypeError, "`step` must be .* Received: 3"),
        ({"tuning": "slow"}, ValueError, "`tuning` must be"),
        ({"plan": ["fast"]}, ValueError, "fast"),
    ],
)
def test_wrong_arguments_are_told(changed, error, match):
    given = {"step": lambda x: x, "model": make_model(), "optimizer": None} | changed
    with pytest.raises(error, match=match):
        tfaccel.accelerate_step(given.pop("step"), **given)


def test_plan_applied_is_for_what_is_traced_inside():
    loop = Loop()
    loop.optimizer.build(loop.model.trainable_variables)
    function, batch = tf.function(loop.step), next(batches(1))
    stock = tf.function(loop.step).get_concrete_function(*batch)
    before = dict(vars(loop.optimizer))
    with tfaccel.plan_applied(OPTIMIZER, loop.model, loop.optimizer) as plan:
        function.get_concrete_function(*batch)
    assert plan.names == ("fused_optimizer",)
    assert dict(vars(loop.optimizer)) == before
    losses = run(function)
    kinds = [
        {op.type for op in one.graph.get_operations()}
        for one in (stock, function.get_concrete_function(*batch))
    ]
    assert "ResourceApplyKerasMomentum" in kinds[1] - kinds[0]
    assert_alike(loop, losses, *plain())


def test_plan_applied_restores_when_the_block_raises():
    loop = Loop()
    loop.optimizer.build(loop.model.trainable_variables)
    before = dict(vars(loop.optimizer))
    with (
        pytest.raises(KeyError),
        tfaccel.plan_applied(OPTIMIZER, [loop.model], [loop.optimizer]),
    ):
        raise KeyError
    assert dict(vars(loop.optimizer)) == before


def test_plan_applied_leaves_out_what_is_not_in_a_trace():
    loop = Loop()
    names = ["xla", "kernels", "step_batching"]
    with (
        pytest.warns(UserWarning, match="leaves out"),
        tfaccel.plan_applied(names, loop.model, loop.optimizer) as plan,
    ):
        assert plan.is_baseline
    with pytest.raises(ValueError, match="`plan` must"), tfaccel.plan_applied("auto", loop.model):
        pass


def test_a_step_that_xla_compiles_stays_so_under_a_plan():
    loop, other = Loop(), Loop()
    settings = {"model": loop.model, "optimizer": loop.optimizer, "verbose": 0}
    step = tfaccel.accelerate_step(tf.function(loop.step, jit_compile=True), OPTIMIZER, **settings)
    losses = run(step, 4)
    assert step.plan.names == ("fused_optimizer",)
    assert_alike(loop, losses, other, run(tf.function(other.step, jit_compile=True), 4))


def test_xla_may_be_the_plan():
    loop = Loop()
    step = accelerated(loop, ["xla"])
    losses = run(step, 4)
    assert step.plan.names == ("xla",)
    assert_alike(loop, losses, *plain(4))


def test_a_step_may_return_nothing_and_take_its_batch_in_any_form():
    loop, other = Loop(), Loop()

    def nothing(one):
        def step(batch, *, flag):
            one.step(batch["x"], batch["y"])
            if flag != "train":
                raise ValueError(flag)

        return tf.function(step)

    step = tfaccel.accelerate_step(
        nothing(loop), OPTIMIZER, model=loop.model, optimizer=loop.optimizer, verbose=0
    )
    buffer = np.zeros((8, 4), "float32")  # filled anew for each step
    for x, y in batches(5):
        buffer[:] = x
        assert step({"x": buffer, "y": y}, flag="train") is None
    stock = nothing(other)
    for x, y in batches(5):
        stock({"x": x, "y": y}, flag="train")
    assert step.plan.names == ("fused_optimizer",)
    assert_alike(loop, [], other, [])


def test_a_loop_that_has_ended_keeps_no_batch():
    loop = Loop()
    step = accelerated(loop)
    run(step, 3)
    assert step.session.holds_data
    step.finish()
    assert not step.session.holds_data
    run(step, 1)
    assert int(loop.optimizer.iterations) == 4


@pytest.mark.parametrize(
    "plan",
    [["mixed_precision"], pytest.param(["fused_norm", "fused_optimizer"], marks=pytest.mark.slow)],
)
def test_passes_for_layers_reach_all_models_of_a_loop(plan):
    """Compared with the original on one batch, gradient by gradient, as in a search."""
    keras.utils.set_random_seed(1)
    parts = [
        keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(16),
                keras.layers.BatchNormalization(),
                keras.layers.Dense(4, name=f"output_{index}"),
            ]
        )
        for index in range(2)
    ]
    optimizer = keras.optimizers.Adam(0.01)
    weights = [v for part in parts for v in part.trainable_variables]

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((parts[1](parts[0](x, training=True), training=True) - y) ** 2)
        optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    items = [
        tfaccel.passes.MixedPrecision("bfloat16") if name == "mixed_precision" else name
        for name in plan
    ]
    fast = tfaccel.accelerate_step(
        step, items, model=parts, optimizer=optimizer, verbose=0, cache_dir=False
    )
    losses = [float(fast(x, y)) for x, y in batches(8)]
    assert set(fast.plan.names) == set(plan)
    assert losses[-1] < losses[0]
    assert all(part.dtype_policy.name == "float32" for part in parts)


@pytest.mark.parametrize("where", ["widen", "hold"])
def test_a_failure_beside_the_step_makes_no_step_twice_and_none_less(monkeypatch, where):
    def broken(*args, **kwargs):
        raise ValueError("it broke")

    monkeypatch.setattr(f"tfaccel.steps.held_batches.HeldBatches.{where}", broken)
    loop = Loop()
    step = accelerated(loop, OPTIMIZER)
    with pytest.warns(match="it broke") as caught:
        losses = run(step)
    assert len(caught) == 1 and step.plan.is_baseline
    assert_alike(loop, losses, *plain())
