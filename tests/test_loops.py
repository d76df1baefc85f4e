"""Custom training loops: a step of the user's own, as fast as it can be, and nothing else."""

import contextlib
import dataclasses
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

import tfaccel
from tfaccel import Outcome
from tfaccel.autotune.comparison.perturb import rounded_inputs
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.looped import Call, Returned
from tfaccel.core.prior import Prior
from tfaccel.loops.progress import LoopProgress
from tfaccel.training import choose

OPTIMIZER = ["fused_optimizer"]


@dataclasses.dataclass(frozen=True)
class Paced(tfaccel.Pass):
    """A step takes so long by the clock, and is wrong or NaN where that is asked for."""

    name = "paced"
    seconds: float = 0.25
    factor: float = 1.0
    nan_from: int = 10**6

    def unsupported(self, workload):
        return None

    def prior(self, workload):
        return Prior(gain=2.0)

    @contextlib.contextmanager
    def applied(self, context):
        loop = LOOPS[0]
        with (
            instance_attribute(loop, "seconds", self.seconds),
            instance_attribute(loop, "factor", self.factor),
            instance_attribute(loop, "nan_from", self.nan_from),
        ):
            yield


@dataclasses.dataclass(frozen=True)
class Wrong(Paced):
    name = "paced_wrong"
    factor: float = 1.5


@dataclasses.dataclass(frozen=True)
class Slower(Paced):
    name = "paced_slower"
    seconds: float = 1.2


LOOPS: list["Loop"] = []  # of the test in hand


def make_model(outputs=1, seed=1):
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(outputs)]
    )


class Loop:
    """A model, an optimizer, and a step that takes a second by the clock."""

    seconds, factor, nan_from = 1.0, 1.0, 10**6

    def __init__(self, optimizer=None, clock=None):
        self.clock = clock
        self.model = make_model()
        self.optimizer = optimizer or keras.optimizers.SGD(0.05, momentum=0.9)
        self.metric = keras.metrics.Mean()
        self.traces = 0
        LOOPS[:] = [self]

    def step(self, x, y):
        self.traces += 1
        if self.clock is not None:
            seconds = self.seconds
            tf.py_function(lambda: self.clock.advance(seconds), [], [])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.model(x, training=True) - y) ** 2) * self.factor
            count = tf.cast(self.optimizer.iterations.value, tf.int32)
            loss *= tf.where(count >= self.nan_from, np.float32(np.nan), 1.0)
        weights = self.model.trainable_variables
        self.optimizer.apply(tape.gradient(loss, weights), weights)
        self.metric.update_state(loss)
        return {"loss": loss, "mean": self.metric.result()}

    def state(self):
        variables = [*self.model.variables, *self.optimizer.variables, *self.metric.variables]
        return [np.array(v) for v in variables]


def batches(count, size=8):
    rng = np.random.default_rng(3)
    for _ in range(count):
        x = rng.normal(size=(size, 4)).astype("float32")
        yield tf.constant(x), tf.constant(x[:, :1])


def accelerated(loop, plan="auto", **settings):
    settings = {"cache_dir": False, "verbose": 0} | settings
    if loop.clock is not None:
        settings = {"clock": loop.clock, "tuning_share": 1.0} | settings
    function = tf.function(loop.step)
    return tfaccel.accelerate_step(
        function, plan, model=loop.model, optimizer=loop.optimizer, **settings
    )


def run(step, count=6, size=8):
    return [{k: float(v) for k, v in step(*b).items()} for b in batches(count, size)]


def plain(count=6, size=8, **settings):
    loop = Loop(**settings)
    return loop, run(tf.function(loop.step), count, size)


def assert_alike(loop, losses, other, expected, exact=False):
    bounds = {"rtol": 0, "atol": 0} if exact else {"rtol": 2e-5, "atol": 1e-6}
    for left, right in zip(loop.state(), other.state(), strict=True):
        np.testing.assert_allclose(left, right, **bounds)
    for left, right in zip(losses, expected, strict=True):
        assert left == pytest.approx(right, rel=0 if exact else 1e-5)


def path(step):
    return [phase.name for phase in step.path]


@pytest.fixture
def repeatable(monkeypatch):
    """Steps move the clock in Python, which may be repeated here."""
    monkeypatch.setattr(choose, "unrepeatable", lambda *args: "")
    monkeypatch.setattr(choose, "unrestorable", lambda *args: "")


@pytest.mark.parametrize("plan", ["baseline", "auto"])
def test_without_a_plan_it_is_the_loop_bit_for_bit(plan):
    loop = Loop()
    losses = run(accelerated(loop, plan))
    assert_alike(loop, losses, *plain(), exact=True)


@pytest.mark.parametrize("name", ["SGD", "Adam"])
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


def test_a_candidate_is_checked_and_raced_on_the_calls_of_the_loop(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced"], steps=60)
    losses = run(step, 60)
    assert path(step) == ["OBSERVE", "PREDICT", "CHECK", "RACE", "PREDICT", "RUN"]
    assert step.plan.names == ("paced",)
    assert step.report.speedup == pytest.approx(4.0, rel=0.01)
    assert_alike(loop, losses, *plain(60))


def test_without_a_length_the_search_waits_until_it_pays(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced"])
    losses = run(step, 80)
    walked = path(step)
    assert walked[:3] == ["OBSERVE", "PREDICT", "AWAIT_LENGTH"]
    assert "AWAIT_LENGTH PREDICT CHECK RACE PREDICT RUN" in " ".join(walked)
    assert walked[-2:] == ["PREDICT", "RUN"]  # asked again at each doubling
    assert step.plan.names == ("paced",)
    assert_alike(loop, losses, *plain(80))


@pytest.mark.parametrize(
    "name, outcome", [("paced_wrong", Outcome.UNFAITHFUL), ("paced_slower", Outcome.SLOWER)]
)
def test_what_is_wrong_or_slower_does_not_run(repeatable, name, outcome):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=[name], steps=60)
    losses = run(step, 60)
    assert step.report.trials[1].outcome is outcome
    assert step.plan.is_baseline
    assert_alike(loop, losses, *plain(60))


def test_a_reproducible_loop_is_the_original_until_the_choice(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced"], steps=60, reproducible=True)
    losses = run(step, 3)
    assert_alike(loop, losses, *plain(3), exact=True)
    LOOPS[:] = [loop]
    losses += run(step, 57)
    assert path(step) == ["OBSERVE", "PREDICT", "TRIALS", "RUN"]


@pytest.mark.parametrize("tuning, least", [("off", 0), ("full", 1)])
def test_how_far_a_search_may_go(repeatable, tuning, least):
    loop = Loop(clock=FakeClock())
    settings = {"tuning": tuning, "includes": ["paced"], "steps": 100}
    step = accelerated(loop, **settings)
    run(step, 6)
    assert len(step.plan.passes) == least


def test_what_won_is_kept_for_the_next_loop(repeatable, tmp_path):
    for expected in (False, True):
        loop = Loop(clock=FakeClock())
        step = accelerated(loop, includes=["paced"], steps=60, cache_dir=tmp_path)
        run(step, 30)
        assert step.report.cached is expected
        assert step.plan.names == ("paced",)


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


class Accumulating(Loop):
    """Adds gradients up over three calls, in variables of its own."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.sums = [tf.Variable(tf.zeros(v.shape)) for v in self.model.trainable_variables]
        self.calls = tf.Variable(0)
        self.optimizer.build(self.model.trainable_variables)

    def step(self, x, y):
        if self.clock is not None:
            seconds = self.seconds
            tf.py_function(lambda: self.clock.advance(seconds), [], [])
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self.model(x, training=True) - y) ** 2)
        weights = self.model.trainable_variables
        for total, gradient in zip(self.sums, tape.gradient(loss, weights), strict=True):
            total.assign_add(gradient * self.factor)
        self.calls.assign_add(1)
        if self.calls % 3 == 0:
            self.optimizer.apply([tf.convert_to_tensor(total) for total in self.sums], weights)
            for total in self.sums:
                total.assign(tf.zeros_like(total))
        return {"loss": loss}

    def state(self):
        return [*super().state(), *(np.array(v) for v in [*self.sums, self.calls])]


@pytest.mark.parametrize("name", ["paced", "paced_wrong"])
def test_gradients_that_a_loop_adds_up_are_state_and_are_compared(repeatable, name):
    loop = Accumulating(clock=FakeClock())
    step = accelerated(loop, includes=[name], steps=60)
    losses = run(step, 41)
    assert step.plan.names == (("paced",) if name == "paced" else ())
    other = Accumulating()
    assert_alike(loop, losses, other, run(tf.function(other.step), 41))


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


def test_steps_to_come_are_those_made_where_nobody_says():
    made = 0
    progress = LoopProgress(lambda: made, None)
    assert progress.steps_to_come is None
    made = 5
    assert progress.steps_to_come == 5 and progress.grows
    epoch, made = progress.epoch, 8
    assert progress.epoch > epoch
    known = LoopProgress(lambda: 5, 20)
    assert (known.steps_to_come, known.grows, known.room) == (15, False, 1)


def test_what_a_step_is_judged_by():
    loss, large = tf.constant(1.0), tf.ones((2, 2))
    assert list(Returned((loss, large, tf.constant(3)))) == ["output 0"]
    assert list(Returned({"a": {"loss": loss}, "n": 1})) == ["a/loss"]
    assert list(Returned([large, None])) == ["output 0"]
    assert Returned(None) == {}


def test_only_the_inputs_of_a_call_are_rounded():
    third = tf.constant([1 / 3])
    for call in (Call((third, third), {}), Call(((third, third),), {})):
        rounded = tf.nest.flatten(rounded_inputs(call, "bfloat16", None))
        assert float(rounded[0][0]) != float(third[0]) and float(rounded[1][0]) == float(third[0])
    rounded = rounded_inputs(Call((), {"x": third, "n": 3}), "bfloat16", None)
    assert float(rounded.kwargs["x"][0]) != float(third[0]) and rounded.kwargs["n"] == 3


def compiled(**settings):
    model = make_model()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9), "mse", metrics=["mae"], jit_compile=False
    )
    return model


SIZES = (8, 8, 8, 5, 3, 7, 2, 8)


def on_batches(train, sizes=SIZES):
    """What `train_on_batch` returns for NumPy's arrays of these sizes."""
    rng = np.random.default_rng(3)
    found = []
    for size in sizes:
        x = rng.normal(size=(size, 4))
        found.append(train(x, x[:, :1], sample_weight=np.ones(size)))
    return np.array(found)


def noting(function, calls):
    """The same function, whose calls are noted."""

    def noted(data):
        calls.append(1)
        return function(data)

    return noted


@pytest.mark.parametrize(
    "plan", [pytest.param("baseline", marks=pytest.mark.slow), "auto", OPTIMIZER]
)
def test_train_on_batch_is_keras_s_own_and_traced_once(plan):
    model, other = compiled(), compiled()
    step = tfaccel.accelerate_step(model, plan, verbose=0)
    traces = []
    with instance_attribute(model, "train_step", noting(model.train_step, traces)):
        step = tfaccel.accelerate_step(model, plan, verbose=0)
        first = on_batches(step, SIZES[:1])
        made = len(traces)
        second = on_batches(step, SIZES[1:])
    # Variables are made in the first trace, which is then thrown away; a plan has one more.
    assert made <= 2 and len(traces) == made + (plan == OPTIMIZER)
    assert step.plan.names == (tuple(plan) if plan == OPTIMIZER else ())
    expected = (
        on_batches(other.train_on_batch, SIZES[:1]),
        on_batches(other.train_on_batch, SIZES[1:]),
    )
    np.testing.assert_allclose(first, expected[0], rtol=1e-5)
    np.testing.assert_allclose(second, expected[1], rtol=1e-5)
    for left, right in zip(model.variables, other.variables, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-6)
    assert model.train_function is None


def test_test_and_predict_on_batch_return_what_keras_s_do():
    model = compiled()
    traces = []
    with contextlib.ExitStack() as stack:
        for name in ("test_step", "predict_step"):
            stack.enter_context(
                instance_attribute(model, name, noting(getattr(model, name), traces))
            )
        step = tfaccel.accelerate_step(model, verbose=0)
    made = []
    for size in (8, 5, 3):
        x = np.random.default_rng(size).normal(size=(size, 4)).astype("float32")
        for return_dict in (False, True):
            found = step.test_on_batch(x, x[:, :1], return_dict=return_dict)
            assert found == pytest.approx(model.test_on_batch(x, x[:, :1], return_dict=return_dict))
        np.testing.assert_allclose(step.predict_on_batch(x), model.predict_on_batch(x), rtol=1e-6)
        made.append(len(traces))
    assert made[0] == made[-1]


def test_a_model_that_is_compiled_anew_begins_anew():
    model = compiled()
    step = tfaccel.accelerate_step(model, OPTIMIZER, verbose=0)
    on_batches(step, (4, 4, 4))
    assert step.plan.names == ("fused_optimizer",)
    model.compile(keras.optimizers.Adam(), "mae")
    step.train_on_batch(np.ones((2, 4)), np.ones((2, 1)))
    assert step.plan.is_baseline
    assert int(model.optimizer.iterations) == 1


def test_a_model_that_runs_eagerly_is_left_alone():
    model = make_model()
    model.compile("sgd", "mse", run_eagerly=True)
    step = tfaccel.accelerate_step(model, OPTIMIZER, verbose=0)
    assert np.isfinite(step(np.ones((2, 4)), np.ones((2, 1))))
    assert "eagerly" in step.report.note


@pytest.mark.parametrize(
    "given, error, match",
    [
        ({"model": 1}, TypeError, "`model` is for a step that is a function"),
        ({"compile": True}, TypeError, "`compile` is for"),
        ({}, ValueError, "must be compiled"),
    ],
)
def test_what_does_not_go_with_a_model(given, error, match):
    with pytest.raises(error, match=match):
        tfaccel.accelerate_step(make_model(), **given)


class TimedModel(keras.Sequential):
    def train_step(self, data):
        seconds = LOOPS[0].seconds
        tf.py_function(lambda: LOOPS[0].clock.advance(seconds), [], [])
        return super().train_step(data)


def test_train_on_batch_is_raced_on_the_calls_of_the_loop(repeatable):
    clock, sizes = Loop(clock=FakeClock()).clock, [8] * 60
    model, other = (TimedModel(make_model().layers) for _ in range(2))
    for one in (model, other):
        one.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    settings = {"clock": clock, "tuning_share": 1.0, "cache_dir": False, "verbose": 0}
    step = tfaccel.accelerate_step(model, includes=["paced"], steps=60, **settings)
    found = on_batches(step, sizes)
    assert path(step) == ["OBSERVE", "PREDICT", "CHECK", "RACE", "PREDICT", "RUN"]
    assert step.plan.names == ("paced",)
    np.testing.assert_allclose(found, on_batches(other.train_on_batch, sizes), rtol=1e-5)


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


@pytest.mark.parametrize("plan", [["mixed_precision"], ["fused_norm", "fused_optimizer"]])
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


def test_a_report_says_that_random_numbers_could_not_be_put_back(monkeypatch):
    monkeypatch.setattr(choose, "unrepeatable", lambda *args: "")
    loop = Loop(clock=FakeClock())
    own = loop.step
    loop.step = lambda x, y: own(x + 1e-9 * tf.random.normal(tf.shape(x)), y)
    step = accelerated(loop, includes=["paced"], steps=60)
    run(step, 30)
    assert step.plan.names == ("paced",)
    assert "RandomStandardNormal" in step.report.note


@dataclasses.dataclass(frozen=True)
class Later(Paced):
    """Worth more, and dearer to get."""

    name = "paced_later"
    seconds: float = 0.05

    def prior(self, workload):
        return Prior(gain=4.0, prepare_seconds=30.0)


def test_a_loop_that_turns_out_longer_looks_for_more(repeatable):
    loop = Loop(clock=FakeClock())
    step = accelerated(loop, includes=["paced", "paced_later"])
    losses = run(step, 60)
    assert step.plan.names == ("paced",)
    LOOPS[:] = [loop]
    losses = run(step, 260)
    assert "paced_later" in step.plan.names
    assert step.report.speedup == pytest.approx(20.0, rel=0.05)
    assert path(step).count("CHECK") == 2 and path(step)[-1] == "RUN"
    assert np.all(np.isfinite([one["loss"] for one in losses]))
    assert int(loop.optimizer.iterations) == 320


@pytest.mark.parametrize(
    ("kind", "name", "runs"),
    [
        (Loop, "paced_wrong", False),
        (Accumulating, "paced", True),
        pytest.param(Loop, "paced", True, marks=pytest.mark.slow),
        pytest.param(Accumulating, "paced_wrong", False, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_recorded_where_no_slot_shows_them(repeatable, kind, name, runs):
    def optimizer():
        return keras.optimizers.RMSprop(0.01)

    loop = kind(optimizer=optimizer(), clock=FakeClock())
    step = accelerated(loop, includes=[name], steps=60)
    losses = run(step, 30)
    assert bool(step.plan.passes) is runs, step.report.reasons()
    other = kind(optimizer=optimizer())
    assert_alike(loop, losses, other, run(tf.function(other.step), 30))
