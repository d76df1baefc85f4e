"""tfaccel.accelerate: the same predictions from a model that is left as it was."""

import functools
import threading

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed
from inference_models import CASES, COUNT, accelerate, assert_alike, image_model, numbers
from predicted import PLAN

import tfaccel
from tfaccel.core.tracing import unmarked
from tfaccel.core.workload import Workload
from tfaccel.inference import accelerating
from tfaccel.inference.engines import ENGINES
from tfaccel.inference.sample import first_batch

layers = keras.layers
winning = inference_models.winning
CASE = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def state(model):
    return [(v.path, v.numpy().tobytes()) for v in model.variables]


def marks(model):
    """Everything about the model that acceleration might leave a mark on."""
    found = []
    for layer in Workload(model).layers:
        found.append({name: id(value) for name, value in vars(layer).items()})
        found.append(str(layer.dtype_policy))
        found += [list(v) for v in vars(layer).values() if isinstance(v, list)]
    return found, state(model)


@CASE
def test_predictions_are_those_of_the_model(case, winning):
    model, x = case.make()
    if not model.built:
        model(tf.nest.map_structure(tf.convert_to_tensor, x))
    before = marks(model)
    fast = accelerate(model, x, PLAN)
    assert marks(model) == before
    size = None if case.name == "stateful" else 5
    # A random or stateful model gives the same only from the same state.
    start = [v.numpy() for v in model.variables]
    expected = model.predict(x, batch_size=size or COUNT, verbose=0)
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    predict_function = model.predict_function
    found = fast.predict(x, batch_size=size or COUNT, verbose=0)
    tolerance = 2e-2 if case.name == "mixed_policy" else 1e-5
    assert_alike(expected, found, tolerance, tolerance)
    assert model.predict_function is predict_function
    assert "predict_step" not in vars(model)


@CASE
def test_what_serves_a_model(case, winning):
    """The plan is used wherever it can be, and the report says why not."""
    model, x = case.make()
    fast = accelerate(model, x, ["frozen_weights"])
    trial = fast.report.trials[1]
    if case.name == "stateful":
        assert trial.outcome is tfaccel.Outcome.REFUSED
    elif case.name == "random":
        assert trial.outcome is tfaccel.Outcome.FAILED
    else:
        assert fast.plan.names == ("frozen_weights",), trial.reason
        assert trial.drift.output < 1e-2
    assert fast.report.predicts


def test_auto_tries_what_serves_predictions(winning):
    model, x = image_model(), numbers(8, 8, 3)
    before = marks(model)
    left_out = ["kernels", "xla", *(kind.name for kind in ENGINES)]
    fast = accelerate(model, x, excludes=left_out, max_tuning_seconds=1e6)
    assert marks(model) == before
    tried = {name for one in fast.report.trials for name in one.plan.names}
    assert {"folded_norm", "frozen_weights", "fused_norm"} <= tried
    assert not tried & {"fused_optimizer", "step_batching", "recompute", "kernels", "xla"}
    assert fast.report.trials[0].outcome is tfaccel.Outcome.BASELINE
    assert fast.plan == fast.report.plan and not fast.plan.is_baseline
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0))


def test_the_clock_decides(clock, monkeypatch):
    """By a clock that moves the same at every reading nothing is faster."""
    model, x = image_model(), numbers(8, 8, 3)
    clock.step = 0.01
    timed = functools.partial(accelerating.make_options, clock=clock)
    monkeypatch.setattr(accelerating, "make_options", timed)
    fast = accelerate(model, x, includes=PLAN)
    assert fast.plan.is_baseline
    assert "model's own function, unchanged" in fast.report.summary()
    assert fast.report.speedup == 1.0
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0), 0, 0)


@pytest.mark.parametrize("optimize", ["throughput", "latency"])
def test_where_nothing_wins_a_call_is_one_call_of_the_model_s_own(optimize, clock, monkeypatch):
    """So a single sample is never slower than Keras has it."""
    model, x = image_model(), numbers(8, 8, 3)[:1]
    clock.step = 0.01
    timed = functools.partial(accelerating.make_options, clock=clock)
    monkeypatch.setattr(accelerating, "make_options", timed)
    made, calls = accelerating.own_function, []

    def counted(model):
        own = made(model)
        return lambda data: (calls.append(len(data)), own(data))[1]

    monkeypatch.setattr(accelerating, "own_function", counted)
    fast = accelerate(model, x, includes=PLAN, optimize=optimize)
    assert fast.plan.is_baseline
    calls.clear()
    found = fast(x)
    assert calls == [1]
    assert_alike(model.predict_on_batch(x), found, 0, 0)
    fast.predict(x, verbose=0)
    assert calls == [1, 1]


def test_the_table_is_printed(capsys):
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2)])
    accelerate(model, numbers(3), ["frozen_weights"], verbose=1)
    printed = capsys.readouterr().out
    assert "frozen_weights" in printed and "baseline" in printed and "tfaccel: Pred" in printed


def test_the_plan_of_a_training_serves(winning):
    plan = tfaccel.Plan((tfaccel.passes.FusedNorm(), tfaccel.passes.FusedOptimizer()))
    fast = accelerate(image_model(), numbers(8, 8, 3), plan)
    assert fast.plan.names == ("fused_norm",)


# Feeding.


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return numbers(4, seed=index), np.zeros(COUNT)


def _generator():
    return ((numbers(4, seed=index),) for index in range(5))


FEEDS = {
    "array": lambda: {"x": numbers(4)},
    "array of doubles": lambda: {"x": numbers(4).astype("float64"), "batch_size": 5},
    "tensor": lambda: {"x": tf.constant(numbers(4)), "batch_size": 7},
    "dataset": lambda: {"x": tf.data.Dataset.from_tensor_slices(numbers(4)).batch(5)},
    "dataset with labels": lambda: {
        "x": tf.data.Dataset.from_tensor_slices((numbers(4), np.zeros(COUNT))).batch(4),
        "steps": 2,
    },
    "PyDataset": lambda: {"x": Batches()},
    "generator": lambda: {"x": _generator(), "steps": 3},
}


@crossed(("feed", "validate"), FEEDS, [False, True])
def test_whatever_predict_takes(feed, validate, winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    fast = accelerate(model, numbers(4), PLAN[1:])
    expected = model.predict(**feed(), verbose=0)
    assert_alike(expected, fast.predict(**feed(), verbose=0, validate=validate))
    if validate:
        assert fast.findings.ok and fast.findings.samples == len(expected)


SAMPLES = {
    "dataset": lambda: tf.data.Dataset.from_tensor_slices(numbers(4)).batch(5),
    "dataset with labels": lambda: tf.data.Dataset.from_tensors((numbers(4), np.zeros(COUNT))),
    "PyDataset": Batches,
    "array of doubles": lambda: numbers(4).astype("float64"),
    "large array": lambda: np.zeros((50, 4), "float32"),
}


@pytest.mark.parametrize(("name", "sample"), SAMPLES.items(), ids=SAMPLES)
def test_samples(name, sample):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    batch = first_batch(model, sample())
    size = {"dataset": 5, "large array": 50}.get(name, COUNT)
    assert batch.shape == (size, 4) and batch.dtype == tf.float32
    assert accelerate(model, sample(), "baseline").plan.is_baseline


@pytest.mark.parametrize(
    ("sample", "error", "message"),
    [
        ((x for x in [numbers(4)]), TypeError, "`sample` must be arrays.*Received: generator"),
        ("x.npy", TypeError, "`sample` must be arrays.*Received: str"),
        (None, TypeError, "`sample` must be arrays.*Received: NoneType"),
        (3.0, TypeError, "`sample` must be arrays.*Received: float"),
        (numbers(4)[:0], ValueError, "`sample` must hold at least one sample"),
        (tf.data.Dataset.from_tensors(numbers(4)).take(0), ValueError, "at least one sample"),
    ],
    ids=["generator", "path", "nothing", "number", "empty", "empty dataset"],
)
def test_wrong_samples_are_told_so(sample, error, message):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(error, match=message):
        accelerate(model, sample)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"plan": "fast"}, ValueError, "`plan` must be"),
        ({"includes": ["no_such"]}, ValueError, "No pass is called 'no_such'"),
        ({"excludes": "xla"}, TypeError, "`excludes` must be a list"),
        ({"tolerance": -1}, ValueError, "`tolerance` must be positive"),
        ({"max_tuning_seconds": -1}, ValueError, "`max_tuning_seconds` must not"),
        ({"cache_dir": True}, TypeError, "`cache_dir` must be"),
    ],
)
def test_wrong_arguments_are_told_so(arguments, error, message):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(error, match=message):
        tfaccel.accelerate(model, numbers(4), **arguments)


def test_what_is_no_model_is_told_so():
    with pytest.raises(TypeError, match="`model` must be a keras.Model. Received: Dense"):
        accelerate(layers.Dense(2), numbers(4))


def test_a_batch_that_the_model_can_not_take_is_the_users_error(winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    with pytest.raises(ValueError, match="incompatible"):
        accelerate(model, numbers(7))
    fast = accelerate(model, numbers(4), PLAN[1:])
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="incompatible"):
        fast.predict(numbers(7), verbose=0)
    assert not fast.plan.is_baseline  # the plan is not to blame
    with pytest.raises(NameError):  # as Keras does
        fast.predict(numbers(4)[:0], verbose=0)


def test_callbacks_see_what_they_saw(winning):
    seen = []
    callback = keras.callbacks.LambdaCallback()
    callback.on_predict_batch_end = lambda batch, logs=None: seen.append(logs["outputs"].shape)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    fast = accelerate(model, numbers(4), PLAN[1:])
    fast.predict(numbers(4), batch_size=5, verbose=0, callbacks=[callback])
    assert seen == [(5, 2), (5, 2), (2, 2)]


def test_a_call_gives_tensors(winning):
    model, x = inference_models.several_inputs_and_outputs()
    fast = accelerate(model, x, PLAN[1:])
    found = fast({key: value.astype("float64")[:3] for key, value in x.items()})
    assert isinstance(found["u"], tf.Tensor) and found["u"].dtype == tf.float32
    assert_alike(model.predict_on_batch({k: v[:3] for k, v in x.items()}), found)


def test_predictions_from_several_threads(winning):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    fast = accelerate(model, numbers(4), PLAN[1:])
    with unmarked(model):
        expected = model.predict(numbers(4), verbose=0)
    fast(numbers(4)[:5]), fast(numbers(4)[:2])
    before = model.predict_function
    found, threads = [], []
    for validate in (False, True, False, True):
        options = {"batch_size": 5, "verbose": 0, "validate": validate}
        run = lambda o=options: found.append(fast.predict(numbers(4), **o))  # noqa: E731
        threads.append(threading.Thread(target=run))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4
    for one in found:
        assert_alike(expected, one)
    assert model.predict_function is before
