"""Several steps in one call: everything that Keras and its callbacks see is as before."""

import contextlib
import csv
import dataclasses
import functools
import itertools
import pathlib

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from early import built_early

import tfaccel
from tfaccel.autotune import search
from tfaccel.autotune.offline import offline_trials
from tfaccel.autotune.plan_cache import workload_key
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.measure import racing, timing
from tfaccel.measure.numerics import Drift
from tfaccel.passes import StepBatching, step_batching
from tfaccel.passes.step_batching import acts_per_batch
from tfaccel.steps import multi_step
from tfaccel.steps.compiled_step import build_step

layers = keras.layers
callbacks = keras.callbacks
# Other models, fed as the rest are, or fed as one of `CASES` below is.
SLOW_FITS = (
    "dense_from_numpy",
    "several_steps_an_execution",
    "unknown_length",
    "infinite",
    "images_from_tf_data",
    "masked_text",
    "several_inputs_and_outputs",
    "frozen_and_regularised",
)
FITS = pytest.mark.parametrize(
    "fit",
    [
        pytest.param(fit, marks=pytest.mark.slow if fit.name in SLOW_FITS else ())
        for fit in catalogue.FITS
    ],
    ids=lambda fit: fit.name,
)


def make_model(dropout=0.2, **compiling):
    keras.utils.set_random_seed(4)
    body = [layers.Dense(8, activation="relu"), layers.Dropout(dropout), layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *body])
    model.compile(**{"optimizer": "sgd", "loss": "mse", "metrics": ["mae"], **compiling})
    return model


def make_data(rows=75):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, 4)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def accelerated(steps=4, **settings):
    return tfaccel.AccelCallback(
        [StepBatching(steps, settings.pop("allow_batch_hooks", False))], verbose=0, **settings
    )


class Logs(callbacks.Callback):
    """Notes what it is handed at every batch and epoch, types included."""

    def __init__(self):
        super().__init__()
        self.handed = []

    def on_train_batch_end(self, batch, logs=None):
        self.handed.append((batch, {k: (type(v), v) for k, v in logs.items()}))

    def on_epoch_end(self, epoch, logs=None):
        self.handed.append((epoch, dict(logs)))


def seen_by_all(making=(), steps=None, others=(), **fitting):
    """Each step's logs, History, the weights and the optimizer's variables after a fit."""
    model, logs = make_model(**dict(making)), Logs()
    if steps is None:
        built_early(model)
    accel = [] if steps is None else [accelerated(steps, allow_batch_hooks=True)]
    given = {"x": make_data(), "batch_size": 8, "epochs": 3, "verbose": 0, **fitting}
    if isinstance(given["x"], tuple):
        given["x"], given["y"] = given["x"]
    history = model.fit(**given, callbacks=[*others, logs, *accel])
    assert not accel or accel[0].plan.names == ("step_batching",)
    values = [v.numpy().tolist() for v in [*model.variables, *model.optimizer.variables]]
    return logs.handed, history.history, values


def unknown_length(batches=9):
    data = tf.data.Dataset.from_tensor_slices(make_data(8 * batches - 3)).batch(8)
    return data.filter(lambda x, y: True)


def growing():
    """Longer in each epoch, and nobody says so."""
    epochs = itertools.count(5)

    def batches():
        for index in range(next(epochs)):
            yield np.full((2, 4), index, "float32"), np.ones((2, 1), "float32")

    spec = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def endless():
    return tf.data.Dataset.from_tensor_slices(make_data(24)).batch(5).repeat()


CASES = {
    "a partial last batch": dict,
    "initial_epoch": lambda: {"initial_epoch": 1},
    "one epoch": lambda: {"epochs": 1},
    "validation": lambda: {"validation_split": 0.3},
    "a batch an epoch": lambda: {"batch_size": 200},
    # Without dropout: whether Keras's own step draws random numbers before it finds the
    # data's end is a race.
    "unknown length": lambda: {
        "x": unknown_length(),
        "validation_data": unknown_length(),
        "making": {"dropout": 0},
    },
    "a growing length": lambda: {"x": growing(), "making": {"dropout": 0}},
    "an iterator that goes on": lambda: {"x": endless(), "steps_per_epoch": 7},
    "data that end within an epoch": lambda: {"x": make_data(), "steps_per_epoch": 7},
    "fewer batches than steps": lambda: {
        "x": unknown_length(4),
        "steps_per_epoch": 6,
        "making": {"dropout": 0},
    },
    "steps_per_execution": lambda: {"making": {"steps_per_execution": 3}},
    "steps_per_execution, unknown length": lambda: {
        "x": unknown_length(),
        "making": {"steps_per_execution": 2},
    },
    "XLA": lambda: {"making": {"jit_compile": True}},
    "a metric of several numbers": lambda: {
        "making": {"metrics": [keras.metrics.R2Score(class_aggregation=None)]}
    },
}


# What differs from the others by the step, more than by how it is fed.
SLOW_CASES = (
    "XLA",
    "a metric of several numbers",
    "steps_per_execution, unknown length",
    "one epoch",
    "initial_epoch",
    "a batch an epoch",
    "a growing length",
)


@functools.cache
def stock_of(case):
    return seen_by_all(**CASES[case]())


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    ("case", "steps"),
    [
        *((case, 4) for case in CASES if case not in SLOW_CASES),
        *(pytest.param(case, 4, marks=pytest.mark.slow) for case in SLOW_CASES),
        pytest.param("unknown length", 2, marks=pytest.mark.slow),
        pytest.param("validation", 100, marks=pytest.mark.slow),
    ],
)
def test_every_log_and_every_weight_is_stock(case, steps):
    assert seen_by_all(**CASES[case](), steps=steps) == stock_of(case)


@FITS
def test_every_kind_of_fit_is_the_same_to_the_last_bit(fit):
    accel = accelerated()
    variables, history = catalogue.results(fit, accel)
    stock_variables, stock_history = catalogue.stock_results(fit)
    for value, stock in zip(variables, stock_variables, strict=True):
        np.testing.assert_array_equal(value, stock)
    assert history == stock_history
    assert accel.plan.names == ("step_batching",)


def test_steps_do_run_together():
    """Else all of the above would hold for nothing."""
    model, calls = make_model(), []

    class Counts(callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            calls.append(int(model.optimizer.iterations.numpy()))

    given = dict(zip("xy", make_data(80), strict=True))
    accel = accelerated(4, allow_batch_hooks=True)
    model.fit(**given, batch_size=8, verbose=0, callbacks=[accel, Counts()])
    assert calls == [1, 5, 5, 5, 5, 9, 9, 9, 9, 10]
    assert accel.session.built.function.experimental_get_tracing_count() == 1


class StopsAfter(callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        self.model.stop_training = epoch == self.epoch


def test_a_training_that_stops_within_its_epoch():
    """`stop_training` set as an epoch begins: Keras runs one more batch."""
    assert seen_by_all(steps=4, others=[StopsAfter(1)]) == seen_by_all(others=[StopsAfter(1)])


def stopped(row, *added):
    model = make_model() if added else built_early(make_model())
    x, y = make_data()
    y[row] = np.nan
    history = model.fit(
        x, y, batch_size=8, epochs=3, shuffle=False, verbose=0,
        callbacks=[*added, callbacks.TerminateOnNaN()],
    )  # fmt: skip
    return int(model.optimizer.iterations), len(history.epoch)


@functools.cache
def stock_stopped(row):
    return stopped(row)


@pytest.mark.parametrize(
    ("row", "guard"),
    [(0, True), (33, False), (74, True), pytest.param(33, True, marks=pytest.mark.slow)],
)
def test_terminate_on_nan_comes_in_time(row, guard):
    assert stopped(row, accelerated(guard=guard)) == stock_stopped(row)


def test_a_failing_pipeline_fails_with_the_same_state():
    def failed(*added):
        model = make_model()
        data = tf.data.Dataset.range(20).map(
            lambda i: (tf.ones((2, 4)), tf.debugging.check_numerics(1 / (14 - i), "bad data"))
        )
        with pytest.raises(tf.errors.InvalidArgumentError, match="bad data"):
            model.fit(data.map(lambda x, y: (x, tf.fill((2, 1), y))), verbose=0, callbacks=added)
        return [w.tolist() for w in model.get_weights()]

    assert failed(accelerated()) == failed()


# Keras's own callbacks: the same files, the same decisions.


def files(folder):
    """What callbacks have left, with TensorBoard's scalars in place of its files."""
    found, model = {}, make_model()
    for path in sorted(pathlib.Path(folder).rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".csv":
            found[name] = list(csv.reader(path.open(encoding="utf-8")))
        elif path.suffix == ".h5":
            model.load_weights(path)
            found[name] = [w.tolist() for w in model.get_weights()]
        elif "tfevents" in path.name:
            records = tf.compat.v1.train.summary_iterator(str(path))
            scalars = [
                (event.step, value.tag, tf.make_ndarray(value.tensor).tolist())
                for event in records
                for value in event.summary.value
                if value.tag != "keras"  # the model's config, with generated names
            ]
            found.setdefault(f"{path.parent.name} events", []).extend(scalars)
    return found


def _tensorboard(folder):
    pytest.importorskip("tensorboard")
    return callbacks.TensorBoard(folder / "board", histogram_freq=1)


KERAS_CALLBACKS = {
    "EarlyStopping": lambda folder: callbacks.EarlyStopping(
        "val_loss", min_delta=1.0, patience=1, restore_best_weights=True
    ),
    "LearningRateScheduler": lambda folder: callbacks.LearningRateScheduler(
        lambda epoch, rate: rate * 0.5
    ),
    "ReduceLROnPlateau": lambda folder: callbacks.ReduceLROnPlateau(
        "loss", min_delta=2.0, patience=1
    ),
    "ModelCheckpoint": lambda folder: callbacks.ModelCheckpoint(
        folder / "{epoch:02d}-{val_loss:.6f}.weights.h5", save_weights_only=True
    ),
    "BackupAndRestore": lambda folder: callbacks.BackupAndRestore(folder / "backup"),
    "CSVLogger": lambda folder: callbacks.CSVLogger(folder / "log.csv"),
    "TensorBoard": _tensorboard,
    "TerminateOnNaN": lambda folder: callbacks.TerminateOnNaN(),
}


# What the writers leave, by the ends of the names in `files`.
WRITTEN = {"ModelCheckpoint": ".h5", "CSVLogger": ".csv", "TensorBoard": " events"}


@pytest.mark.parametrize(
    "names",
    [
        ("EarlyStopping",),
        pytest.param(("LearningRateScheduler",), marks=pytest.mark.slow),
        pytest.param(("ReduceLROnPlateau",), marks=pytest.mark.slow),
        ("TensorBoard",),
        # They decide nothing here, so one training serves them all.
        ("ModelCheckpoint", "BackupAndRestore", "CSVLogger", "TerminateOnNaN"),
    ],
    ids=" ".join,
)
def test_keras_s_callbacks_decide_and_write_the_same(names, tmp_path):
    def run(folder, *added):
        keras.utils.clear_session(free_memory=False)  # the layers' names are in the files
        model = make_model()
        x, y = make_data()
        folder.mkdir()
        history = model.fit(
            x, y, batch_size=8, epochs=6, verbose=0, validation_split=0.2,
            callbacks=[*(KERAS_CALLBACKS[name](folder) for name in names), *added],
        )  # fmt: skip
        weights = [w.tolist() for w in model.get_weights()]
        rate = float(model.optimizer.learning_rate)
        return history.epoch, history.history, weights, rate, files(folder)

    accel = accelerated()
    stock, batched = run(tmp_path / "stock"), run(tmp_path / "batched", accel)
    assert batched == stock
    assert accel.plan.names == ("step_batching",)
    epochs, _, _, rate, written = stock
    assert (len(epochs) < 6) == ("EarlyStopping" in names)  # or nothing would be decided
    assert (rate < 0.005) == (names[0] in ("ReduceLROnPlateau", "LearningRateScheduler"))
    for name, end in WRITTEN.items():
        assert any(file.endswith(end) for file in written) == (name in names)


def test_the_progress_bar_ends_the_same(capsys):
    def shown(*added):
        x, y = make_data()
        make_model().fit(x, y, batch_size=8, verbose=2, callbacks=list(added))
        return [line.split(" - ")[3:] for line in capsys.readouterr().out.splitlines()]

    assert shown(accelerated()) == shown() != []


# Refusals.


class Watching(callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        pass


class Inheriting(Watching):
    pass


class Saving(callbacks.ModelCheckpoint):
    pass


class PerEpoch(callbacks.EarlyStopping):
    pass


def _with_hook(name):
    return type("Own", (callbacks.Callback,), {name: lambda self, batch, logs=None: None})()


ACTING = [
    (Watching(), "on_train_batch_end"),
    (Inheriting(), "on_train_batch_end"),
    (_with_hook("on_train_batch_begin"), "on_train_batch_begin"),
    (_with_hook("on_batch_begin"), "on_batch_begin"),
    (_with_hook("on_batch_end"), "on_batch_end"),
    (callbacks.LambdaCallback(on_train_batch_end=print), "on_train_batch_end"),
    (callbacks.LambdaCallback(on_batch_end=print), "on_batch_end"),
    (callbacks.ModelCheckpoint("x.keras", save_freq=5), "on_train_batch_end"),
    (callbacks.BackupAndRestore("x", save_freq=5), "on_train_batch_end"),
    (Saving("x.keras"), "on_train_batch_end"),
    (callbacks.LambdaCallback(on_epoch_end=print), None),
    (callbacks.ModelCheckpoint("x.keras"), None),
    (callbacks.BackupAndRestore("x"), None),
    (callbacks.ProgbarLogger(), None),
    (callbacks.TerminateOnNaN(), None),
    (callbacks.History(), None),
    (PerEpoch(), None),
    (tfaccel.AccelCallback(), None),
    (tfaccel.ProfilerCallback(), None),
]


@pytest.mark.parametrize(("callback", "hook"), ACTING, ids=map(str, range(len(ACTING))))
def test_who_acts_at_every_batch(callback, hook):
    assert acts_per_batch(callback) == hook


@pytest.mark.parametrize(
    ("settings", "acts"),
    [
        ({}, False),
        ({"update_freq": "batch"}, True),
        ({"update_freq": 10}, True),
        ({"profile_batch": 2}, True),
        ({"profile_batch": (2, 5)}, True),
        ({"write_steps_per_second": True}, True),
        ({"histogram_freq": 1}, False),
    ],
)
def test_when_tensorboard_acts_at_every_batch(settings, acts, tmp_path):
    pytest.importorskip("tensorboard")
    assert bool(acts_per_batch(callbacks.TensorBoard(tmp_path, **settings))) == acts


def test_a_callback_that_acts_per_batch_is_named():
    x, y = make_data()
    with pytest.warns(UserWarning, match=r"Watching.on_train_batch_end acts at every batch"):
        accel = accelerated()
        make_model().fit(x, y, verbose=0, callbacks=[accel, Watching()])
    assert accel.plan.is_baseline


@pytest.mark.parametrize("steps", [1, 0, -3, 2.5, True, "4"])
def test_a_wrong_number_of_steps_is_told_so(steps):
    with pytest.raises(ValueError, match=r"`steps` must be an integer of at least 2. Received"):
        StepBatching(steps)


class OwnFunction(keras.Sequential):
    def make_train_function(self, force=False):
        return super().make_train_function(force)


def test_what_else_is_refused():
    item, model = StepBatching(), make_model()
    assert item.unsupported(Workload(model)) is None
    assert item.unsupported(Workload(model, step_seconds=0.001)) is None
    assert item.unsupported(Workload(model, step_seconds=0.04)).kind is Refusal.NO_USE
    assert item.unsupported(Workload(model, callbacks=None)).kind is Refusal.OWN_CODE
    allowed = StepBatching(allow_batch_hooks=True)
    assert allowed.unsupported(Workload(model, callbacks=(Watching(),))) is None
    own = OwnFunction([keras.Input((4,)), layers.Dense(1)])
    own.compile("sgd", "mse")
    unsupported = item.unsupported(Workload(own))
    assert unsupported.kind is Refusal.OWN_CODE and "make_train_function" in unsupported.cause


@pytest.mark.parametrize(
    ("seconds", "steps"), [(0.0, 32), (0.003, 32), (0.006, 16), (0.02, 4), (0.5, 4)]
)
def test_as_many_steps_as_nobody_sees(seconds, steps):
    assert StepBatching.suited(Workload(make_model(), step_seconds=seconds)).steps == steps
    assert steps in step_batching.CHOICES


def test_a_second_fit_with_another_callback_refuses():
    x, y = make_data()
    model, accel = make_model(), accelerated()
    model.fit(x, y, verbose=0, callbacks=[accel])
    with pytest.warns(UserWarning, match="leaves out step_batching"):
        model.fit(x, y, verbose=0, callbacks=[accel, Watching()])
    assert accel.plan.is_baseline


# In the engine: trials, the guard, the profiler, the cache.


def state_after(*added, epochs=2, **compiling):
    model = make_model(**compiling)
    if not added:
        built_early(model)
    x, y = make_data()
    history = model.fit(x, y, batch_size=8, epochs=epochs, verbose=0, callbacks=list(added))
    values = [v.numpy().tolist() for v in [*model.variables, *model.optimizer.variables]]
    return values, history.history


@functools.cache
def stock_after(epochs=2):
    return state_after(epochs=epochs)


@pytest.fixture
def slow_is_fast_enough(monkeypatch):
    """A busy machine can take longer for a small step than the pass allows."""
    monkeypatch.setattr(step_batching, "CALL_SECONDS", 1e3)


@pytest.mark.parametrize("wins", [True, pytest.param(False, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("slow_is_fast_enough")
def test_trials_and_what_they_choose_change_nothing(wins, monkeypatch):
    gain = tfaccel.Speedup(2.0, 1.9, 2.1, 6) if wins else tfaccel.Speedup(0.5, 0.4, 0.6, 6)
    monkeypatch.setattr(timing, "speedup", lambda own, candidate: gain)
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", float("inf"))
    accel = tfaccel.AccelCallback(
        includes=["step_batching"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    assert state_after(accel) == stock_after()
    assert accel.plan.names == (("step_batching",) if wins else ())
    if wins:
        assert accel.report.trials[1].drift == Drift()


@pytest.mark.usefixtures("slow_is_fast_enough")
def test_a_group_that_is_another_training_is_unfaithful(monkeypatch):
    """It would be found out: here the first of the steps goes missing."""
    run = multi_step.MultiStep.__call__

    def skipping(self, iterator, most):
        if most > 1:
            next(iterator)
        return run(self, iterator, most)

    monkeypatch.setattr(multi_step.MultiStep, "__call__", skipping)
    monkeypatch.setattr(timing, "speedup", lambda own, fast: tfaccel.Speedup(2.0, 1.9, 2.1, 6))
    monkeypatch.setattr(racing, "CLEARLY_SLOWER", float("inf"))
    accel = tfaccel.AccelCallback(
        includes=["step_batching"], tuning_share=None, max_tuning_seconds=1e6, verbose=0
    )
    state_after(accel)
    assert accel.report.trials[1].outcome is tfaccel.Outcome.UNFAITHFUL


def test_both_sides_of_a_trial_make_as_many_steps():
    """On a clock that moves at each reading a turn takes one second, whatever runs in it."""
    model = make_model()
    x, y = make_data(32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    with offline_trials(model, data, clock=FakeClock(step=1.0)) as bench:
        made = model.optimizer.iterations
        plan, before = tfaccel.Plan((StepBatching(4),)), int(made)
        bench._functions[plan] = build_step(bench.workload, plan)
        bench._own_calls(4)()
        assert int(made) == before + 4
        assert len(bench._calls(plan, 4)()) == 4
        assert int(made) == before + 8
        assert bench._race(plan, deadline=0.0, fewest=1).baseline_seconds == [1.0]


def test_it_costs_no_probe():
    workload = Workload(make_model(), first_step_seconds=10.0, step_seconds=0.01)
    single = search.trial_seconds(tfaccel.Plan((StepBatching(4),)), workload)
    both = search.trial_seconds(
        tfaccel.Plan((tfaccel.passes.FusedOptimizer(), StepBatching(4))), workload
    )
    assert single == pytest.approx(10.0 * 1.2 + 2 * 6 * 4 * 0.01)
    assert both == pytest.approx(10.0 * (2 * 1.2 + 1) + 2 * 6 * 4 * 0.01)


def test_one_pass_is_tried_where_the_budget_is_short_of_all():
    """All three would cost 96 s, two at least 30, one 12."""
    x, y = make_data(32)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    with offline_trials(make_model(), data, clock=FakeClock(step=1e-3)) as bench:
        bench.workload = dataclasses.replace(
            bench.workload, first_step_seconds=10.0, step_seconds=0.001
        )
        names = ("fused_optimizer", "xla", "step_batching")
        report = search.tune_workload(bench.workload, bench, names, 25.0)
    assert report.trials[1].plan.names == ("step_batching",)
    assert not report.complete


@pytest.mark.parametrize("compare_every", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_the_profiler_watches_without_a_change(compare_every):
    profiler = tfaccel.ProfilerCallback(compare_every=compare_every, verbose=0)
    accel = accelerated()
    assert state_after(accel, profiler, epochs=4) == stock_after(epochs=4)
    summary = profiler.summary()
    assert accel.plan.names == ("step_batching",)
    assert summary["steps"] == 4 * 10
    assert bool(summary["comparisons"]) == bool(compare_every)


@dataclasses.dataclass(frozen=True)
class Spoiling(tfaccel.Pass):
    """The loss is NaN from the tenth step of the second epoch on."""

    name = "spoiling"

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        model = context.workload.model
        original = model.compute_loss

        def compute_loss(*args, **kwargs):
            late = model.optimizer.iterations.value >= 16
            return original(*args, **kwargs) * tf.where(late, np.float32(np.nan), 1.0)

        with instance_attribute(model, "compute_loss", compute_loss):
            yield


def test_the_guard_finds_the_bad_step_in_a_group():
    logs = Logs()
    accel = tfaccel.AccelCallback([Spoiling(), StepBatching(8, True)], verbose=0)
    with pytest.warns(RuntimeWarning, match="the loss turned non-finite"):
        _, history = state_after(accel, logs, epochs=3)
    assert np.all(np.isfinite(history["loss"]))
    assert len(logs.handed) == 3 * 11
    assert accel.plan.is_baseline


def test_another_callback_is_another_key_of_the_cache():
    def key(*watching):
        workload = Workload(
            make_model(), batches=(make_data(8),), element_spec=(), callbacks=watching
        )
        return workload_key(workload, ("step_batching",), None)

    assert key() == key(callbacks.EarlyStopping()) != key(Watching())
