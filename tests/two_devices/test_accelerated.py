"""AccelCallback and ProfilerCallback under a strategy of two replicas, on two logical CPUs."""

import contextlib
import dataclasses
import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.autotune.expected.expectation import Candidate
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.plan import Pass
from tfaccel.core.replicas import replica_id
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.measure import racing
from tfaccel.passes import XLA, Layout, MixedPrecision

layers = keras.layers


@pytest.fixture(scope="module")
def mirrored():
    return tfaccel.AccelStrategy("mirrored")


@pytest.fixture(
    scope="module", params=["mirrored", pytest.param("one_device", marks=pytest.mark.slow)]
)
def strategy(request, mirrored):
    # Not TensorFlow's own beside ours: two strategies number their collective operations alike.
    return mirrored if request.param == "mirrored" else tf.distribute.OneDeviceStrategy("CPU:1")


def images(samples=72):
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 3, samples)
    x = rng.normal(size=(samples, 8, 8, 3)) + labels[:, None, None, None] * 0.5
    return x.astype("float32"), labels


def cnn(strategy, optimizer="adam"):
    keras.utils.set_random_seed(7)
    with strategy.scope():
        x = inputs = keras.Input((8, 8, 3))
        x = layers.BatchNormalization(momentum=0.5)(layers.Conv2D(4, 3, padding="same")(x))
        x = layers.GlobalAveragePooling2D()(layers.Dropout(0.2)(layers.ReLU()(x)))
        model = keras.Model(inputs, layers.Dense(3)(x))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"])
    return model


def mlp(strategy):
    """Quick to trace, with a mask to draw and statistics to keep."""
    keras.utils.set_random_seed(7)
    with strategy.scope():
        body = [layers.Flatten(), layers.Dense(4), layers.BatchNormalization(momentum=0.5)]
        model = keras.Sequential(
            [keras.Input((8, 8, 3)), *body, layers.Dropout(0.2), layers.Dense(3)]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile("sgd", loss, metrics=["accuracy"])
    return model


def fit(model, *callbacks, epochs=1, validated=False):
    x, y = images()
    # TensorFlow takes a second to spread a dataset over devices, in each epoch.
    validation = (x[:20], y[:20]) if validated else None
    return model.fit(
        x,
        y,
        batch_size=16,
        epochs=epochs,
        validation_data=validation,
        verbose=0,
        callbacks=[*callbacks],
    ).history


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [copy.numpy() for v in variables for copy in getattr(v.value, "values", (v.value,))]


@functools.cache
def trained_plainly(strategy):
    """History and state of a fit without tfaccel, which several tests compare with."""
    model = mlp(strategy)
    return fit(model), state(model)


def assert_same(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def assert_close(actual, expected, **tolerance):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, **tolerance)


def accel(plan="auto", **settings):
    settings = {"cache_dir": False, "max_tuning_seconds": 1e6, "tuning_share": None} | settings
    return tfaccel.AccelCallback(plan, verbose=0, **settings)


def test_trials_leave_no_trace(strategy, monkeypatch):
    """Batches are taken out and fed back, steps, probes and restores happen; nothing stays."""
    monkeypatch.setattr("tfaccel.autotune.trial_runner.WORTHWHILE", 1e9)  # whatever is tried loses
    plain, tuned = mlp(strategy), mlp(strategy)
    expected = fit(plain, epochs=2, validated=True)
    callback = accel(includes=["fused_optimizer"])
    history = fit(tuned, callback, epochs=2, validated=True)
    tried = [t for t in callback.report.trials if t.outcome.value != "refused"]
    assert len(tried) == 2, callback.report.to_markdown()
    assert all(t.outcome.value in ("baseline", "slower", "stopped") for t in tried)
    assert_same(state(tuned), state(plain))
    assert list(history.values()) == list(expected.values())


@pytest.fixture
def plans_win(monkeypatch):
    """Whatever is tried takes half the time."""

    def race(baseline, candidate, *_, **__):
        baseline(), candidate()
        found = racing.Race()
        found.baseline_seconds, found.candidate_seconds = [2.0] * 6, [1.0] * 6
        return found

    monkeypatch.setattr(racing, "race", race)


@dataclasses.dataclass(frozen=True)
class Louder(Pass):
    """Trains on another loss."""

    name = "louder"
    factor: float = 1.1

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        own = context.workload.model.compute_loss

        def compute_loss(*args, **kwargs):
            return own(*args, **kwargs) * np.float32(self.factor)

        with instance_attribute(context.workload.model, "compute_loss", compute_loss):
            yield


def test_a_faithful_plan_wins_and_another_does_not(mirrored, plans_win):
    """Gradients are compared on every replica."""
    expected, _ = trained_plainly(mirrored)
    callback = accel(includes=["fused_optimizer"])
    history = fit(mlp(mirrored), callback)
    assert callback.plan.names == ("fused_optimizer",)
    drift = callback.report.trials[1].drift
    assert drift is not None and 0 <= drift.gradient < 1e-3
    assert_close(history.values(), expected.values(), rtol=2e-3)
    callback = accel(includes=["louder"], tolerance=0.01)
    history = fit(mlp(mirrored), callback)
    assert [t.outcome.value for t in callback.report.trials] == ["baseline", "unfaithful"]
    assert list(history.values()) == list(expected.values())


@pytest.mark.parametrize(
    ("plan", "optimizer"),
    [
        (["fused_norm", "fused_optimizer"], "adam"),
        pytest.param(["fused_optimizer", "recompute"], "sgd", marks=pytest.mark.slow),
    ],
)
def test_it_is_the_same_training(mirrored, plan, optimizer):
    plain, fast = cnn(mirrored, optimizer), cnn(mirrored, optimizer)
    expected = fit(plain, epochs=2, validated=True)
    callback = accel(plan)
    history = fit(fast, callback, epochs=2, validated=True)
    assert callback.plan.names == tuple(plan)
    assert_close(history.values(), expected.values(), rtol=2e-3)
    assert_close(state(fast), state(plain), rtol=2e-2, atol=2e-4)
    for variable in [*fast.variables, *fast.optimizer.variables]:
        assert_same(*[[copy.numpy()] for copy in variable.value.values])


@pytest.mark.slow  # as a layer with a bias does below
def test_bfloat16_trains(mirrored):
    model = cnn(mirrored, keras.optimizers.SGD(0.1))
    callback = accel([MixedPrecision("bfloat16")])
    losses = fit(model, callback, epochs=3)["loss"]
    assert callback.plan.names == ("mixed_precision",)
    assert losses[-1] < losses[0]
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}


def test_a_float16_model_trains_as_in_float32(mirrored):
    """Without dropout, which draws other masks in 16 bits."""

    def model(policy):
        keras.utils.set_random_seed(7)
        with mirrored.scope():
            hidden = layers.Dense(8, activation="relu", dtype=policy)
            model = keras.Sequential(
                [keras.Input((8, 8, 3)), layers.Flatten(), hidden, layers.Dense(3)]
            )
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(keras.optimizers.SGD(0.1), loss)
        return model

    callback = accel(["full_precision"])
    found = fit(model("mixed_float16"), callback, epochs=2)["loss"]
    assert callback.plan.names == ("full_precision",)
    np.testing.assert_allclose(found, fit(model("float32"), epochs=2)["loss"], rtol=1e-5)


@pytest.mark.parametrize("item", [XLA(), Layout()])
def test_several_replicas_are_refused(mirrored, item):
    assert item.unsupported(Workload(mlp(mirrored))).kind is Refusal.REPLICAS


def test_fit_may_be_called_within_the_scope(mirrored):
    """Where every variable that is made has a copy on each device."""
    callback = accel(["fused_norm"])
    with mirrored.scope():
        fit(mlp(mirrored), callback)
    assert callback.plan.names == ("fused_norm",)


@pytest.mark.slow  # what the guard makes of one is the same on one device
def test_a_nan_of_the_users_own_data_is_passed_on(mirrored):
    x, y = images(64)
    x[50] = np.nan  # in one replica's share
    model = mlp(mirrored)
    callback = accel(["fused_optimizer"])
    history = model.fit(x, y, batch_size=16, shuffle=False, verbose=0, callbacks=[callback]).history
    assert np.isnan(history["loss"][-1])
    assert callback.plan.names == ("fused_optimizer",)


@dataclasses.dataclass(frozen=True)
class Spoiled(Louder):
    """Makes the loss NaN."""

    name = "spoiled"
    factor: float = np.nan


def test_a_plan_that_breaks_the_loss_costs_nothing(mirrored):
    guarded, (expected, expected_state) = mlp(mirrored), trained_plainly(mirrored)
    with pytest.warns(RuntimeWarning, match="goes on with your own step.*not finite"):
        history = fit(guarded, accel(["spoiled"]))
    assert_same(state(guarded), expected_state)
    assert list(history.values()) == list(expected.values())


def test_every_replica_is_traced_under_the_plan_once(mirrored):
    """Replicas are traced in threads that take turns: contexts must not come twice, or part."""
    seen = []

    @dataclasses.dataclass(frozen=True)
    class Watched(Pass):
        name = "watched"

        def unsupported(self, workload):
            return None

        @contextlib.contextmanager
        def applied(self, context):
            seen.append("in")
            layer = context.workload.model.layers[-1]
            own = layer.call

            def call(*args, **kwargs):
                seen.append(replica_id())
                return own(*args, **kwargs)

            with instance_attribute(layer, "call", call):
                yield
            seen.append("out")

    model = mlp(mirrored)
    model.fit(*images(32), batch_size=16, verbose=0, callbacks=[accel([Watched()])])
    traced = seen[seen.index("in") :]
    assert sorted(entry for entry in traced if isinstance(entry, int)) == [0, 1]
    assert [entry for entry in traced if entry in ("in", "out")] == ["in", "out"] * 2
    assert "call" not in vars(model.layers[-1])


@pytest.mark.slow
def test_the_profiler_counts_all_replicas(mirrored, tmp_path, capsys):
    model, plain = mlp(mirrored), mlp(mirrored)
    profiler = tfaccel.ProfilerCallback(tmp_path, compare_every=2)
    history = fit(model, profiler, accel(["fused_optimizer"]), epochs=3)
    summary = profiler.summary()
    assert summary["steps"] == 3 * 5
    ratio = summary["samples_per_sec"] / summary["batches_per_sec"]
    assert 8 < ratio <= 16.01  # batches of 16 samples, eight of them on each replica; one of 8
    assert summary["replicas"] == 2
    assert summary["one_replica_step_ms"] > 0
    assert summary["scaling_efficiency"] == pytest.approx(
        summary["one_replica_step_ms"] / summary["step_ms"]
    )
    assert summary["comparisons"] > 0
    assert summary["flops_per_step"] % 2 == 0 and summary["flops_per_step"] > 0
    assert "of 2 times one replica's throughput" in " ".join(capsys.readouterr().out.split())
    assert_close(history.values(), fit(plain, epochs=3).values(), rtol=2e-3)


@pytest.mark.slow
def test_a_model_that_cant_be_copied_has_no_scaling(mirrored):
    class Odd(keras.Model):
        def __init__(self, size):
            super().__init__()
            self.dense = layers.Dense(size)

        def call(self, x):
            return self.dense(x)

    with mirrored.scope():
        model = Odd(3)
        model.compile("sgd", "mse")
    x = np.ones((32, 4), "float32")
    profiler = tfaccel.ProfilerCallback(compare_every=3, verbose=0)
    with pytest.warns(RuntimeWarning, match="could not measure a replica alone"):
        model.fit(x, x[:, :3], batch_size=8, epochs=2, verbose=0, callbacks=[profiler])
    assert profiler.summary()["scaling_efficiency"] is None


def test_biases_are_trained_as_in_float32_on_every_replica(mirrored):
    """TensorFlow would lose half of their gradients' sums in bfloat16."""

    def model():
        keras.utils.set_random_seed(7)
        with mirrored.scope():
            body = [layers.Dense(2), layers.GlobalAveragePooling1D(), layers.Dense(1)]
            model = keras.Sequential([keras.Input((4096, 2)), *body])
            model.compile(keras.optimizers.SGD(0.1), "mse")
        return model

    x = np.random.default_rng(1).normal(size=(4, 4096, 2)).astype("float32")
    plain, fast = model(), model()
    for net, callbacks in ((plain, []), (fast, [accel([MixedPrecision("bfloat16")])])):
        net.fit(x, np.full((4, 1), 5.0, "float32"), batch_size=4, verbose=0, callbacks=callbacks)
    for replica in fast.layers[0].bias.value.values:
        np.testing.assert_allclose(replica, plain.layers[0].bias.numpy(), rtol=0.02)


@pytest.mark.slow  # real workers race in test_multi_worker.py
def test_a_race_on_the_steps_of_two_replicas(strategy, monkeypatch):
    monkeypatch.setattr(Candidate, "pays", lambda *args: True)
    plain, raced = mlp(strategy), mlp(strategy)
    expected = fit(plain, epochs=8)
    callback = accel(includes=["fused_optimizer"], tuning="quick", tuning_share=1.0)
    history = fit(raced, callback, epochs=8)
    path = [phase.name for phase in callback.session.path]
    assert path[:4] == ["OBSERVE", "PREDICT", "CHECK", "RACE"]
    assert_close(state(raced), state(plain), rtol=1e-3, atol=1e-5)
    assert_close(list(history.values()), list(expected.values()), rtol=1e-3)
