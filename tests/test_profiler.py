"""What a user sees of a `fit` with ProfilerCallback, alone and beside AccelCallback."""

import contextlib
import dataclasses
import json
import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.profiling.records import read_records

layers = keras.layers


def make_model(**compiling):
    keras.utils.set_random_seed(5)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(8), layers.Dense(1)])
    # It has slots, as Adam has, and takes half the time to trace.
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(**{"optimizer": optimizer, "loss": "mse", "metrics": ["mae"], **compiling})
    return built_early(model)


def make_data(rows=92):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return {"x": x, "y": x.sum(axis=1, keepdims=True), "batch_size": 8, "verbose": 0}


def state(model):
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def assert_same(left, right):
    for a, b in zip(left, right, strict=True):
        np.testing.assert_array_equal(a, b)


def fit(callbacks, epochs=3, **compiling):
    model = make_model(**compiling)
    history = model.fit(**make_data(), epochs=epochs, callbacks=callbacks)
    return model, history.history


def accelerated(**settings):
    return tfaccel.AccelCallback(["fused_optimizer"], verbose=0, **settings)


FEEDS = {
    "numpy": lambda: make_data(),
    "unknown length": lambda: {
        "x": tf.data.Dataset.from_generator(
            lambda: iter([(make_data()["x"][:8], make_data()["y"][:8])] * 9),
            output_signature=(tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1))),
        ),
        "verbose": 0,
    },
}


@pytest.mark.parametrize(
    ("compiling", "feed"),
    [
        ({}, "numpy"),
        ({"steps_per_execution": 5}, "unknown length"),
        pytest.param({"run_eagerly": True}, "numpy", marks=pytest.mark.slow),
        pytest.param({}, "unknown length", marks=pytest.mark.slow),
        pytest.param({"steps_per_execution": 5}, "numpy", marks=pytest.mark.slow),
        pytest.param({"run_eagerly": True}, "unknown length", marks=pytest.mark.slow),
    ],
)
def test_alone_it_changes_nothing(feed, compiling, capsys):
    def trained(callbacks):
        model = make_model(**compiling)
        history = model.fit(**FEEDS[feed](), epochs=2, callbacks=callbacks)
        return state(model), history.history

    weights, history = trained([tfaccel.ProfilerCallback(verbose=0)])
    assert capsys.readouterr().out == ""
    expected_weights, expected_history = trained([])
    assert_same(weights, expected_weights)
    assert list(history.values()) == list(expected_history.values())


@pytest.mark.parametrize("order", [1, pytest.param(-1, marks=pytest.mark.slow)])
def test_without_comparison_it_changes_nothing_beside_a_plan(order):
    profiler = tfaccel.ProfilerCallback(compare_every=None, verbose=0)
    model, _ = fit([accelerated(), profiler][::order])
    expected, _ = fit([accelerated()])
    assert_same(state(model), state(expected))
    assert profiler.summary()["plan"] == "fused_optimizer"
    assert profiler.summary()["comparisons"] == 0
    assert profiler.summary()["speedup"] is None


@pytest.mark.parametrize("order", [1, -1])
def test_own_steps_are_compared_in_any_order_of_callbacks(order):
    profiler = tfaccel.ProfilerCallback(compare_every=3, verbose=0)
    fit([accelerated(), profiler][::order], epochs=6)
    summary = profiler.summary()
    assert summary["comparisons"] >= 6
    assert summary["speedup_low"] <= summary["speedup"] <= summary["speedup_high"]
    assert summary["steps"] == 6 * 12


def test_a_comparison_is_an_ordinary_training_step():
    """Every batch is trained on once, by one step or the other."""
    model, history = fit([tfaccel.ProfilerCallback(compare_every=2, verbose=0), accelerated()])
    expected, expected_history = fit([])
    assert int(model.optimizer.iterations.numpy()) == int(expected.optimizer.iterations.numpy())
    for a, b in zip(state(model), state(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(list(history.values()), list(expected_history.values()), rtol=1e-4)


def test_the_train_function_is_given_back():
    model = make_model()
    model.fit(**make_data())
    function = model.train_function
    model.fit(**make_data(), callbacks=[tfaccel.ProfilerCallback(verbose=0), accelerated()])
    assert model.train_function is function


class Fails(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if batch == 5:
            raise ZeroDivisionError


def test_after_an_exception_the_next_fit_is_alone():
    model = make_model()
    profiler = tfaccel.ProfilerCallback(verbose=0)
    with pytest.raises(ZeroDivisionError):
        model.fit(**make_data(), callbacks=[profiler, Fails()])
    model.fit(**make_data())
    assert profiler.summary()["steps"] == 6
    assert isinstance(model.train_function, type(make_and_fit().train_function))


def make_and_fit():
    model = make_model()
    model.fit(**make_data())
    return model


def test_train_on_batch_in_another_callback_is_not_measured():
    class Extra(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.train_on_batch(np.ones((2, 4)), np.ones((2, 1)))

    profiler = tfaccel.ProfilerCallback(verbose=0)
    fit([profiler, Extra()], epochs=2)
    assert profiler.summary()["steps"] == 24


def test_logs_are_keras_s_own():
    seen = set()
    keys = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.update(logs))
    fit([tfaccel.ProfilerCallback(verbose=0), accelerated(), keys])
    assert seen == {"loss", "mae"}


def test_the_file_tells_the_whole_run(tmp_path):
    profiler = tfaccel.ProfilerCallback(tmp_path / "run", compare_every=2, verbose=0)
    fit([profiler, accelerated()])
    records = read_records(tmp_path / "run" / "profile.jsonl")
    assert records.run["batch_size"] == 8
    assert records.run["steps_per_epoch"] == 12
    assert records.run["model"]["parameters"] == 49
    assert [record["epoch"] for record in records.intervals] == [0, 1, 2]
    assert [record["steps"] for record in records.intervals[1:]] == [12, 12]
    assert len(records.comparisons) == profiler.summary()["comparisons"]
    assert records.summary["steps"] == 36
    assert records.summary["flops_per_step"] == 3 * 2 * 8 * (4 * 8 + 8)
    assert records.traces[0]["shapes"] == ["(None, 4) float32", "(None, 1) float32"]


def documented_keys(kind):
    """The keys that docs/report.md has for a kind of record."""
    text = pathlib.Path(__file__).parent.parent.joinpath("docs", "report.md").read_text("utf-8")
    part = text.partition(f"\n### `{kind}`\n")[2].partition("\n### ")[0]
    return {line.split("`")[1] for line in part.splitlines() if line.startswith("| `")}


def test_the_file_keeps_to_its_schema(tmp_path):
    fit([tfaccel.ProfilerCallback(tmp_path, compare_every=2, verbose=0), accelerated()])
    for line in (tmp_path / "profile.jsonl").read_text().splitlines():
        record = json.loads(line)
        assert set(record) - {"kind"} == documented_keys(record["kind"])


def test_tensorboard_has_the_numbers_of_each_epoch(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    fit([tfaccel.ProfilerCallback(tmp_path, verbose=0)])
    written = events.EventAccumulator(str(tmp_path)).Reload()
    record = read_records(tmp_path / "profile.jsonl").intervals[-1]
    found = written.Tensors("time/step_ms")
    assert [event.step for event in found] == [12, 24, 36]
    assert tf.make_ndarray(found[-1].tensor_proto) == np.float32(record["time/step_ms"])
    assert not any(tag.startswith("plan") for tag in written.Tags()["tensors"])


def test_update_freq_counts_batches(tmp_path):
    fit([tfaccel.ProfilerCallback(tmp_path, update_freq=5, verbose=0)], epochs=2)
    steps = [r["step"] for r in read_records(tmp_path / "profile.jsonl").intervals]
    # The first step is traced, so it does not count for the first interval.
    assert steps == [6, 11, 12, 17, 22, 24]


def test_a_folder_that_cannot_be_written_is_told_and_training_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="file"):
        model, _ = fit([tfaccel.ProfilerCallback(tmp_path / "file" / "run", verbose=0)])
    assert_same(state(model), state(fit([])[0]))


def test_xla_compilations_are_counted_with_their_shapes(tmp_path):
    profiler = tfaccel.ProfilerCallback(tmp_path, verbose=0)
    fit([profiler], jit_compile=True)
    assert profiler.summary()["compiles"] == 2  # the last batch of an epoch has 4 rows
    shapes = [trace["shapes"][0] for trace in read_records(tmp_path / "profile.jsonl").traces]
    assert shapes == ["(8, 4) float32", "(4, 4) float32"]


def test_the_loss_scale_is_told():
    profiler = tfaccel.ProfilerCallback(verbose=0)
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(), initial_scale=1024.0)
    fit([profiler], optimizer=optimizer)
    assert profiler.summary()["loss_scale"] == 1024.0


def test_what_it_prints(capsys):
    model = make_model()
    model.fit(**make_data() | {"verbose": 2}, epochs=2, callbacks=[tfaccel.ProfilerCallback()])
    lines = capsys.readouterr().out.splitlines()
    said = [index for index, line in enumerate(lines) if line.startswith("tfaccel: epoch")]
    assert [lines[index - 1][:5] for index in said] == ["12/12", "12/12"]
    assert "ms a step" in lines[said[0]] and "samples/s" in lines[said[0]]
    table = "\n".join(lines[said[-1] :])
    for word in ("Step (median)", "Samples/s", "Waiting for input", "First step"):
        assert word in table


@dataclasses.dataclass(frozen=True)
class Hasty(tfaccel.Pass):
    """Steps take a fifth of the scripted time."""

    name = "hasty"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        with instance_attribute(context.workload.model, "step_seconds", 0.2):
            yield


class Scripted(keras.Sequential):
    """Its steps move a fake clock."""

    step_seconds = 1.0

    def train_step(self, data):
        logs = super().train_step(data)
        tf.numpy_function(self.clock.advance, [np.float64(self.step_seconds)], [])
        return logs


@pytest.mark.parametrize("wait, claimed", [(0.0, True), (0.5, False)])
def test_a_speedup_is_claimed_only_where_the_step_sets_the_pace(clock, wait, claimed, capsys):
    def batches():
        for _ in range(40):
            clock.advance(wait)
            yield np.ones((8, 4), np.float32), np.ones((8, 1), np.float32)

    spec = tf.TensorSpec((8, 4)), tf.TensorSpec((8, 1))
    dataset = tf.data.Dataset.from_generator(batches, output_signature=spec)
    # No prefetching: a batch comes when it is asked for.
    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.inject_prefetch = False
    dataset = dataset.with_options(options)
    model = Scripted([keras.Input((4,)), layers.Dense(1)])
    model.clock = clock
    model.compile("sgd", "mse")
    profiler = tfaccel.ProfilerCallback(compare_every=4, clock=clock)
    accel = tfaccel.AccelCallback(["hasty"], clock=clock, verbose=0)
    model.fit(dataset, epochs=3, verbose=0, callbacks=[profiler, accel])
    summary = profiler.summary()
    assert summary["input_bound"] is not claimed
    assert summary["comparisons"] >= 10
    assert summary["speedup"] == (pytest.approx(5.0) if claimed else None)
    assert ("input-bound" in capsys.readouterr().out) is not claimed


BAD = [
    ({"compare_every": 0}, "`compare_every`"),
    ({"compare_every": "often"}, "`compare_every`"),
    ({"update_freq": "batch"}, "`update_freq`"),
    ({"update_freq": True}, "`update_freq`"),
    ({"profile_batch": -1}, "`profile_batch`"),
    ({"profile_batch": (5, 3)}, "`profile_batch`"),
    ({"profile_batch": "2,3"}, "`profile_batch`"),
]


@pytest.mark.parametrize("arguments, name", BAD, ids=lambda value: str(value))
def test_bad_arguments_are_named(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be .* Received: "):
        tfaccel.ProfilerCallback(**arguments)


def test_a_summary_needs_a_training():
    with pytest.raises(RuntimeError, match="needs a training"):
        tfaccel.ProfilerCallback().summary()


class TestTracing:
    def test_the_plan_and_the_own_step_are_traced(self, tmp_path, capsys):
        profiler = tfaccel.ProfilerCallback(tmp_path, profile_batch=(14, 17))
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            fit([profiler, accelerated()])
        records = read_records(tmp_path / "profile.jsonl")
        assert [record["plan"] for record in records.ops] == ["fused_optimizer", "baseline"]
        assert [record["steps"] for record in records.ops] == [4, 4]
        for record in records.ops:
            names = {op["name"]: op for op in record["ops"]}
            assert names["MatMul"]["op_kind"] == "matmul"
            assert names["MatMul"]["count"] >= 4 * 2
        assert "matmul" in capsys.readouterr().out

    def test_without_comparison_only_the_step_in_use_is_traced(self, tmp_path):
        fit(
            [
                tfaccel.ProfilerCallback(tmp_path, compare_every=None, profile_batch=15, verbose=0),
                accelerated(),
            ]
        )
        (record,) = read_records(tmp_path / "profile.jsonl").ops
        assert (record["plan"], record["steps"]) == ("fused_optimizer", 1)

    def test_a_training_that_ends_too_early_leaves_nothing_running(self):
        fit([tfaccel.ProfilerCallback(profile_batch=(30, 99), verbose=0)])
        fit([tfaccel.ProfilerCallback(profile_batch=(2, 3), verbose=0)])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            tf.profiler.experimental.start("")
            tf.profiler.experimental.stop(save=False)
