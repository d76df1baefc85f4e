"""max_batch_size: the search by fakes, and real steps on small models."""

import contextlib
import json

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from early import built_early

from tfaccel.batch_size import BatchSizeReport, SizeTrial, max_batch_size, steps
from tfaccel.batch_size.search import Limits, search
from tfaccel.measure.outcome import Outcome
from tfaccel.passes import Recompute
from tfaccel.system import memory

layers = keras.layers


class Machine:
    """Steps that take a constant and so many bytes a row, on a device of some size."""

    def __init__(self, fixed=0, each=1, full=None, told=True):
        self.fixed, self.each, self.full, self.told = fixed, each, full, told
        self.tried = []

    def need(self, size):
        return self.fixed + self.each * size

    def __call__(self, size):
        self.tried.append(size)
        if self.full is not None and self.need(size) > self.full:
            return SizeTrial(size, Outcome.OUT_OF_MEMORY)
        return SizeTrial(size, Outcome.FITS, self.need(size) if self.told else None, 0.5)


def largest(trials):
    return BatchSizeReport(trials, 1.0, "memory").largest


@pytest.mark.parametrize("start", [1, 3, 64, 100])
@pytest.mark.parametrize("fits", [0, 1, 2, 3, 63, 64, 65, 99, 100])
@pytest.mark.parametrize("told", [True, False])
def test_running_out_is_met(start, fits, told):
    machine = Machine(fixed=7, each=2, full=7 + 2 * fits, told=told)
    assert largest(search(machine, Limits(start, 100))) == fits
    assert len(set(machine.tried)) == len(machine.tried)
    assert len(machine.tried) <= 15


@pytest.mark.parametrize("start", [1, 5])
@pytest.mark.parametrize("fits", [5, 8, 500, 511, 512, 513, 4000])
@pytest.mark.parametrize("fixed", [0, 10_000])
def test_what_is_foreseen_to_be_too_large_is_not_tried(start, fits, fixed):
    machine = Machine(fixed, each=64)
    trials = search(machine, Limits(start, 4096, memory_bytes=machine.need(fits)))
    assert largest(trials) == fits
    # Before two sizes are known, twice the first is tried.
    assert max(machine.tried) <= max(fits, 2 * start)
    if fits > 2 * start:
        assert trials[-1] == SizeTrial(fits + 1, Outcome.FORESEEN, machine.need(fits + 1))


def test_what_takes_more_than_was_foreseen_does_not_count():
    """A need that jumps at some size."""

    def jumps(size):
        return SizeTrial(size, Outcome.FITS, size if size < 40 else 100 * size)

    trials = search(jumps, Limits(1, 1000, memory_bytes=200))
    assert largest(trials) == 39
    assert next(t.batch_size for t in trials if t.verdict is Outcome.OVER) == 64


def test_the_machines_memory_is_never_exceeded():
    """However much the user allows: twice the rows may take twice the memory."""
    machine = Machine(fixed=1000, each=10)
    limits = Limits(1, 1000, memory_bytes=10**9, available_bytes=lambda: 5000)
    assert 395 < largest(search(machine, limits)) <= 400
    assert max(map(machine.need, machine.tried)) <= 5000


def test_the_limit_ends_the_search():
    machine = Machine()
    trials = search(machine, Limits(3, 50))
    assert [trial.batch_size for trial in trials] == [3, 6, 12, 24, 48, 50]
    assert search(machine, Limits(50, 50))[0].verdict is Outcome.FITS


def report(limited_by="memory"):
    trials = (
        SizeTrial(1, Outcome.FITS, 3 * 2**20, 0.0123),
        SizeTrial(2, Outcome.FITS),
        SizeTrial(4, Outcome.OUT_OF_MEMORY),
    )
    return BatchSizeReport(trials, 0.75, limited_by, 10**9)


def test_the_report_survives_json():
    assert BatchSizeReport.from_json(report().to_json()) == report()
    assert json.loads(report().to_json())["largest"] == 2
    for text in ("{}", "[]", '{"schema": 9}', "no"):
        with pytest.raises(ValueError, match="not a report of max_batch_size|schema of .* must be"):
            BatchSizeReport.from_json(text)


def test_the_report_says_what_was_found():
    text = report().to_markdown()
    assert "| 1 | 3.00 MiB | 12.3 ms | fits |" in text
    assert "| 4 |  |  | out of memory |" in text
    assert "A batch of 2 is the largest that fits; 1 leaves 25%" in text
    console = rich.console.Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report())
    assert "out of memory" in console.export_text()


def test_the_recommended_size():
    assert report().batch_size == 1
    assert report("limit").batch_size == 2
    assert BatchSizeReport((SizeTrial(1, Outcome.OUT_OF_MEMORY),), 0.9, "memory").batch_size == 0
    assert BatchSizeReport((SizeTrial(1, Outcome.FITS),), 0.1, "memory").batch_size == 1
    nothing = BatchSizeReport((SizeTrial(1, Outcome.OUT_OF_MEMORY),), 0.9, "memory")
    assert "not even of one row" in nothing.summary()


# -- real steps ------------------------------------------------------------------------


def make(**compiling):
    body = [layers.Dense(8), layers.BatchNormalization(), layers.Dropout(0.5), layers.Dense(1)]
    model = keras.Sequential([keras.Input((3,)), *body])
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(**{"optimizer": optimizer, "loss": "mse", "metrics": ["mae"], **compiling})
    return model


SAMPLE = (np.arange(12, dtype="float64").reshape(4, 3), np.ones((4, 1)))


class FullAt:
    """A meter whose steps take a byte a row, on top of what is real."""

    def __init__(self, monkeypatch, rows_of):
        self.sizes = []
        monkeypatch.setattr(steps, "meter_for", lambda device: self)
        self._rows_of = rows_of

    @contextlib.contextmanager
    def measured(self):
        peak = memory.Peak()
        yield peak
        peak.bytes = self._rows_of()

    def available_bytes(self):
        return 200


class Out(keras.layers.Layer):
    """Runs out of memory with more than so many rows."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows
        self.seen = []

    def call(self, x):
        def look(rows):
            self.seen.append(int(rows))
            if rows > self.rows:
                raise MemoryError("the fake device is full")
            return rows

        rows = tf.ensure_shape(tf.numpy_function(look, [tf.shape(x)[0]], tf.int32), ())
        return x + tf.cast(rows * 0, x.dtype)


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [v.numpy().tobytes() for v in variables]


def with_out(rows):
    out = Out(rows)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            out,
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    return built_early(model), out


def test_memory_runs_out_in_a_real_step():
    model, out = with_out(rows=21)
    model.fit(*SAMPLE, verbose=0)
    before, train_function = state(model), model.train_function
    found = max_batch_size(model, SAMPLE, limit=64, headroom=1.0, verbose=0)
    assert (found.batch_size, found.limited_by) == (21, "memory")
    assert {22, 32} <= set(out.seen)
    assert max(out.seen) == 32
    assert state(model) == before
    assert model.train_function is train_function
    assert [t.verdict for t in found.trials].count(Outcome.OUT_OF_MEMORY) >= 2
    model.fit(*SAMPLE, verbose=0)  # the process is as usable as it was


def test_a_training_afterwards_is_the_training_it_would_have_been():
    def trained(search):
        keras.utils.set_random_seed(2)
        model = make()
        model.build((None, 3))
        if search:
            max_batch_size(model, SAMPLE, limit=16, verbose=0)
        history = model.fit(*SAMPLE, epochs=2, batch_size=2, verbose=0, shuffle=False)
        return state(model), history.history

    assert trained(search=True) == trained(search=False)


def test_nothing_fits():
    model, _ = with_out(rows=0)
    found = max_batch_size(model, SAMPLE, verbose=0)
    assert (found.batch_size, found.largest, found.limited_by) == (0, 0, "memory")
    model, _ = with_out(rows=2)
    found = max_batch_size(model, SAMPLE, start=16, headroom=1.0, verbose=0)
    assert found.batch_size == 2


@pytest.mark.slow
def test_the_memory_limit_of_the_user(monkeypatch):
    model, out = with_out(rows=10**6)
    FullAt(monkeypatch, lambda: out.seen[-1])
    found = max_batch_size(model, SAMPLE, memory_limit_bytes=77, headroom=0.5, verbose=0)
    assert (found.largest, found.batch_size, found.limited_by) == (77, 38, "memory")
    assert max(out.seen) == 77
    assert found.memory_limit_bytes == 77


def test_the_memory_limit_by_default_is_half_of_what_is_free(monkeypatch):
    model, out = with_out(rows=10**6)
    FullAt(monkeypatch, lambda: out.seen[-1])
    found = max_batch_size(model, SAMPLE, headroom=1.0, verbose=0)
    assert (found.batch_size, found.memory_limit_bytes) == (100, 100)


@pytest.mark.parametrize(
    "sample",
    [
        SAMPLE,
        (SAMPLE[0][:1], SAMPLE[1][:1]),
        (*SAMPLE, np.ones(4)),
        next(iter(tf.data.Dataset.from_tensor_slices(SAMPLE).batch(3))),
    ],
    ids=["arrays", "one_row", "weights", "batch"],
)
@pytest.mark.slow
def test_kinds_of_samples(sample):
    assert max_batch_size(make(), sample, limit=8, verbose=0).batch_size == 8


def test_dictionaries_and_an_unbuilt_model():
    class Sum(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(1)

        def call(self, inputs):
            return {"out": self.dense(inputs["a"] + inputs["b"])}

    model = Sum()
    model.compile("sgd", {"out": "mse"})
    sample = {"a": SAMPLE[0], "b": SAMPLE[0]}, {"out": SAMPLE[1]}
    assert max_batch_size(model, sample, limit=4, verbose=0).batch_size == 4
    assert int(model.optimizer.iterations.numpy()) == 0


def test_several_steps_an_execution_and_a_plan(capsys):
    model = make(steps_per_execution=3)
    found = max_batch_size(model, SAMPLE, plan=["fused_optimizer"], limit=4)
    assert found.batch_size == 4
    assert "A batch of 4 fits" in capsys.readouterr().out


def test_another_error_is_the_users():
    with pytest.raises(Exception, match="[Ii]ncompatible|[Ss]hape"):
        max_batch_size(make(), (np.ones((4, 7)), np.ones((4, 1))), verbose=0)


@pytest.mark.parametrize(
    ("sample", "arguments", "message"),
    [
        (SAMPLE, {"start": 0}, "`start` must be a positive whole number. Received: 0"),
        (SAMPLE, {"limit": 2.5}, "`limit` must be a positive whole number. Received: 2.5"),
        (SAMPLE, {"start": True}, "`start` must be a positive"),
        (SAMPLE, {"start": 9, "limit": 8}, "`start` must not be above `limit`"),
        (SAMPLE, {"headroom": 0}, "`headroom` must be above 0 and at most 1. Received: 0"),
        (SAMPLE, {"headroom": 1.5}, "`headroom` must be above 0"),
        (SAMPLE, {"memory_limit_bytes": 0}, "`memory_limit_bytes` must be None or above 0"),
        (SAMPLE, {"plan": "nowhere.json"}, "`plan` must be"),
        (SAMPLE, {"plan": [Recompute()]}, "`plan` holds recompute.*no part of several layers"),
        ((np.ones((4, 3)), np.ones((3, 1))), {}, r"same number of rows.*Received rows: \[3, 4\]"),
        ((np.ones((0, 3)), np.ones((0, 1))), {}, "at least one"),
        ((np.ones((4, 3)), 2.0), {}, "first dimension is the batch's. Received: a number"),
        ((), {}, "Received rows: no arrays"),
    ],
)
def test_bad_arguments(sample, arguments, message):
    model = make()
    if "plan" in arguments:
        model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
        model.compile("sgd", "mse")
    with pytest.raises(ValueError, match=message):
        max_batch_size(model, sample, **arguments, verbose=0)


def test_bad_samples_and_models():
    with pytest.raises(TypeError, match=r"`sample` must be one batch, such as `next\(iter"):
        max_batch_size(make(), tf.data.Dataset.from_tensors(SAMPLE))
    with pytest.raises(TypeError, match="`sample` must hold arrays of numbers"):
        max_batch_size(make(), (np.array([object()]), np.ones((1, 1))))
    with pytest.raises(ValueError, match="`model` must be compiled"):
        max_batch_size(keras.Sequential([layers.Dense(1)]), SAMPLE)
    with pytest.raises(ValueError, match="must have a compiled step.*run_eagerly"):
        max_batch_size(make(run_eagerly=True), SAMPLE)


def test_a_system_that_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(steps, "meter_for", lambda device: memory.ProcessMeter(tmp_path))
    with pytest.raises(RuntimeError, match="this system does not tell"):
        max_batch_size(make(), SAMPLE, verbose=0)
