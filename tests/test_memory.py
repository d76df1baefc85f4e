"""Memory that runs out, and memory that is measured."""

import contextlib
import dataclasses
import functools
import gc
import threading
import weakref
from typing import ClassVar

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early

import tfaccel
from tfaccel.autotune import training_trials as train_bench
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.priors import pass_names, reserve_names
from tfaccel.autotune.search import tune_workload
from tfaccel.compat.patching import instance_attribute
from tfaccel.system import memory

layers = keras.layers


def make_model():
    body = [layers.Dense(8, activation="relu"), layers.Dense(8), layers.BatchNormalization()]
    model = keras.Sequential([keras.Input((4,)), *body, layers.Dropout(0.2), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def make_data(epochs=1):
    x = np.random.default_rng(3).normal(size=(64, 4)).astype("float32")
    return {"x": x, "y": x.sum(axis=1, keepdims=True), "batch_size": 8, "epochs": epochs}


def tuned_fit(includes, **arguments):
    keras.utils.set_random_seed(4)
    model = make_model()
    accel = tfaccel.AccelCallback(
        includes=includes, tuning_share=None, max_tuning_seconds=1e6, verbose=0, **arguments
    )
    model.fit(**make_data(), verbose=0, callbacks=[accel])
    return model, accel.report


def state(model):
    return [v.numpy().tobytes() for v in [*model.variables, *model.optimizer.variables]]


def out_of_memory(tensor):
    """Fails when it runs as an allocation does, at once: oneDNN's allocator waits ten seconds."""

    def fail(_):
        raise MemoryError("OOM when allocating a tensor")

    found = tf.numpy_function(fail, [tensor], tf.float32)
    return tf.reshape(found, ())


@dataclasses.dataclass(frozen=True)
class _Serving(tfaccel.Pass):
    """The common half of this file's passes."""

    name = "serving_memory"

    def unsupported(self, workload):
        return None

    def applied(self, context):
        return contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class FullWhileTracing(_Serving):
    """Runs out of memory while its step is traced (constants that don't fit do that)."""

    name = "full_while_tracing"

    @contextlib.contextmanager
    def applied(self, context):
        if tf.inside_function():
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating a constant")
        yield


@dataclasses.dataclass(frozen=True)
class FullWhileRunning(_Serving):
    """Runs out of memory half way through the step."""

    name = "full_while_running"
    helped: ClassVar[bool] = False  # whether it does so only where there is no `recompute`

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        own = model.compute_loss

        def compute_loss(x, y, y_pred, *args, **kwargs):
            loss = own(x, y, y_pred, *args, **kwargs)
            if self.helped and "_run_through_graph" in vars(model._functional):
                return loss
            return loss + out_of_memory(y_pred)

        with instance_attribute(model, "compute_loss", compute_loss):
            yield


@dataclasses.dataclass(frozen=True)
class Helped(FullWhileRunning):
    name = "full_while_running_helped"
    helped = True


@functools.cache
def untouched():
    """The state after a training without tfaccel."""
    keras.utils.set_random_seed(4)
    model = built_early(make_model())
    model.fit(**make_data(), verbose=0)
    return state(model)


@pytest.mark.parametrize("name", ["full_while_tracing", "full_while_running"])
def test_a_trial_that_runs_out_of_memory_is_an_outcome(name):
    model, report = tuned_fit([name])
    tried = report.trials[1]
    assert tried.outcome is tfaccel.Outcome.FAILED
    assert tried.ran_out_of_memory
    assert "ResourceExhaustedError" in tried.reason and "recompute" in tried.reason
    assert report.plan.is_baseline
    assert state(model) == untouched()


@pytest.mark.parametrize("reserve", [None, pytest.param((), marks=pytest.mark.slow)])
def test_a_plan_that_runs_out_is_tried_again_with_less(reserve):
    x = np.ones((32, 4), "float32")
    data = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(8)
    names = ["full_while_running_helped", "fused_optimizer"]
    with offline_trials(make_model(), data) as bench:
        report = tune_workload(bench.workload, bench, names, 1e6, reserve=reserve)
    tried = {trial.plan.names: trial for trial in report.trials}
    assert tried["fused_optimizer", "full_while_running_helped"].ran_out_of_memory
    rescued = tried.get(("fused_optimizer", "recompute", "full_while_running_helped"))
    assert (rescued is not None) == (reserve is None)
    assert rescued is None or rescued.outcome is not tfaccel.Outcome.FAILED, rescued.reason


def test_a_failed_trial_lets_go_of_its_step(monkeypatch):
    built = []
    own = train_bench.build_step

    def build_step(*args, **kwargs):
        step = own(*args, **kwargs)
        built.append(weakref.ref(step))
        return step

    monkeypatch.setattr(train_bench, "build_step", build_step)
    tuned_fit(["full_while_running"])
    for thread in threading.enumerate():
        if thread.name.startswith("tfaccel"):
            thread.join()  # lets go of an iterator
    gc.collect()
    assert built
    assert not any(reference() for reference in built)


def test_a_plan_of_the_users_that_runs_out_costs_nothing():
    keras.utils.set_random_seed(4)
    model = make_model()
    with pytest.warns(RuntimeWarning, match="goes on with your own step.*ResourceExhausted"):
        model.fit(
            **make_data(), verbose=0, callbacks=[tfaccel.AccelCallback(["full_while_running"])]
        )
    assert state(model) == untouched()


class TooLarge(keras.Model):
    """Does not fit, unless it is recomputed."""

    fits = False

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if self.fits or "_run_through_graph" in vars(self):
            return loss
        return loss + out_of_memory(y_pred)


def too_large(fits=False):
    keras.utils.set_random_seed(4)
    x = inputs = keras.Input((4,))
    for _ in range(3):
        x = layers.BatchNormalization()(layers.Dense(8, activation="relu")(x))
    model = TooLarge(inputs, layers.Dense(1)(layers.Dropout(0.2)(x)))
    model.fits = fits
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return built_early(model)


@functools.cache
def fitting():
    """The variables after a training that fits, by Keras alone, of a model that otherwise fails."""
    with pytest.raises(tf.errors.ResourceExhaustedError):
        too_large().fit(**make_data(), verbose=0)
    model = too_large(fits=True)
    model.fit(**make_data(), verbose=0)
    return [variable.numpy() for variable in model.variables]


@pytest.mark.parametrize(
    "settings",
    [pytest.param({"plan": ["recompute"]}, marks=pytest.mark.slow), {"includes": ["recompute"]}],
)
def test_a_step_that_runs_out_of_memory_goes_on_under_recompute(settings):
    model, accel = too_large(), tfaccel.AccelCallback(**settings, cache_dir=False, verbose=0)
    model.fit(**make_data(), verbose=0, callbacks=[accel])
    assert accel.plan.names == ("recompute",)
    for actual, expected in zip(model.variables, fitting(), strict=True):
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-6)


def test_recompute_is_tried_only_when_asked_for():
    assert "recompute" not in pass_names(None, ())
    assert pass_names(["recompute"], ()) == ("recompute",)
    assert reserve_names(None, ()) == ("recompute",)
    assert reserve_names(None, ["recompute"]) == ()
    assert reserve_names(["xla"], ()) == ()
    assert reserve_names(["xla", "recompute"], ()) == ("recompute",)


@pytest.mark.slow
def test_recompute_when_it_is_asked_for():
    _, report = tuned_fit(["recompute"])
    assert [trial.plan.names for trial in report.trials] == [(), ("recompute",)]
    assert report.trials[1].outcome is not tfaccel.Outcome.FAILED, report.to_markdown()
    keras.utils.set_random_seed(4)
    model = make_model()
    accel = tfaccel.AccelCallback(["recompute"], verbose=0)
    model.fit(**make_data(epochs=2), verbose=0, callbacks=[accel])
    assert accel.plan.names == ("recompute",)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"), True),
        (MemoryError(), True),
        (tf.errors.InternalError(None, None, "Dst tensor is not initialized."), True),
        (tf.errors.InternalError(None, None, "CUDA_ERROR_OUT_OF_MEMORY: out of memory"), True),
        (tf.errors.UnknownError(None, None, "CUDNN_STATUS_ALLOC_FAILED"), True),
        (tf.errors.InternalError(None, None, "a bug"), False),
        (tf.errors.InvalidArgumentError(None, None, "out of memory"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error, expected):
    assert memory.is_out_of_memory(error) is expected


def test_a_real_step_that_asks_for_too_much():
    """More than any machine has: TensorFlow's allocator on a CPU says so, too."""
    with pytest.raises(tf.errors.ResourceExhaustedError) as caught:
        tf.zeros((10**13, 100))
    assert memory.is_out_of_memory(caught.value)


linux = pytest.mark.skipif(not (memory.ROOT / "proc/self/clear_refs").exists(), reason="no /proc")


@linux
def test_the_peak_of_a_process():
    meter = memory.ProcessMeter()
    with meter.measured() as peak:
        block = np.ones(2**26, "uint8")
        del block
    assert 0.9 * 2**26 < peak.bytes < 2**27
    with meter.measured() as peak:
        pass
    assert peak.bytes < 2**25
    assert 0 < meter.available_bytes() < 2**50


def test_a_containers_limit_counts(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "sys" / "fs" / "cgroup" / "box"
    (proc / "self").mkdir(parents=True)
    cgroup.mkdir(parents=True)
    (proc / "self" / "cgroup").write_text("0::/box/inner\n")
    (proc / "meminfo").write_text("MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    (proc / "self" / "status").write_text("VmHWM:\t  90 kB\nVmRSS:\t  70 kB\n")
    meter = memory.ProcessMeter(tmp_path)
    assert meter.available_bytes() == 500 * 1024
    (cgroup / "memory.max").write_text("max\n")
    (cgroup / "memory.current").write_text("100\n")
    assert meter.available_bytes() == 500 * 1024
    (cgroup / "memory.max").write_text("1000\n")
    assert meter.available_bytes() == 900
    # What the kernel can drop at once is not taken.
    (cgroup / "memory.stat").write_text("anon 40\ninactive_file 60\n")
    assert meter.available_bytes() == 960
    with meter.measured() as peak:
        assert peak.bytes is None
    assert peak.bytes == 20 * 1024
    assert (proc / "self" / "clear_refs").read_text() == "5"
