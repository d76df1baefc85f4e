"""Every `fit` has its callback once under `tfaccel run`, and a closing row."""

import contextlib
import gc
import multiprocessing
import os
import runpy
import warnings
import weakref
from multiprocessing import process

import keras
import numpy as np
import pytest
from test_run import RUN, ended

import tfaccel
from tfaccel.compat import keras_private
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.launch import every_fit as every
from tfaccel.launch import spawned
from tfaccel.launch.closing import Fit, closing, rows
from tfaccel.launch.every_batch import every_batch
from tfaccel.launch.fits import Fits
from tfaccel.launch.start import Options, Watch

X, Y = np.ones((8, 3), "float32"), np.ones((8, 1), "float32")


class Probe(keras.callbacks.Callback):
    """Notes which callbacks of tfaccel's are in the fit with it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_begin(self, logs=None):
        kinds = (tfaccel.AccelCallback, tfaccel.ProfilerCallback)
        running = keras_private.running_callbacks(self.model)
        self.found.append([c for c in running if isinstance(c, kinds)])


def make(kind=keras.Sequential):
    model = kind([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model


@pytest.fixture
def fits():
    """What `tfaccel run` has beside the fits of this test."""
    found = Fits(Options())
    with every.every_fit(found.begin):
        yield found


def listed(model, *callbacks):
    return keras.callbacks.CallbackList(
        list(callbacks), add_history=True, model=model, epochs=1, steps=2, verbose=0
    )


class Overridden(keras.Sequential):
    """A model with a `fit` of its own around Keras's."""

    def fit(self, *args, **kwargs):
        return super().fit(*args, verbose=0, **kwargs)


@pytest.mark.parametrize(
    "fit",
    [
        lambda model, probe: model.fit(X, Y, verbose=0, callbacks=[probe]),
        lambda model, probe: model.fit(X, Y, verbose=0, callbacks=probe),
        lambda model, probe: model.fit(X, Y, verbose=0, callbacks=[[probe], ()]),
        lambda model, probe: model.fit(X, Y, 4, 1, 0, [probe]),
        lambda model, probe: keras.Model.fit(model, X, y=Y, verbose=0, callbacks=(probe,)),
        lambda model, probe: model.fit(X, Y, 4, verbose=0, callbacks=listed(model, probe)),
        lambda model, probe: make(Overridden).fit(X, Y, callbacks=[probe]),
    ],
)
def test_every_fit_has_the_callback_once(fits, fit):
    probe = Probe()
    history = fit(make(), probe)
    assert list(history.history) == ["loss"]
    assert [type(c) for (c,) in probe.found] == [tfaccel.AccelCallback]


def test_a_fit_keeps_its_own_callback(fits):
    probe, mine = Probe(), tfaccel.AccelCallback("baseline", verbose=0)
    make().fit(X, Y, verbose=0, callbacks=[mine, probe])
    assert probe.found == [[mine]]
    make().fit(X, Y, verbose=0)  # and no callbacks at all are some, too
    assert len(rows(fits.ended)) == 1


def test_a_list_of_keras_s_own_is_as_it_was(fits):
    model, probe = make(), Probe()
    given = listed(model, probe)
    before = list(given.callbacks)
    model.fit(X, Y, 4, verbose=0, callbacks=given)
    assert given.callbacks == before


class Overriding(keras.Sequential):
    """A model with a `train_on_batch` of its own around Keras's."""

    calls = 0

    def train_on_batch(self, *args, **kwargs):
        self.calls += 1
        return super().train_on_batch(*args, **kwargs)


SIZES = (8, 8, 5, 3, 7, 2)


def train_by_batches(model):
    """What each call returns."""
    return [
        (model.train_on_batch(X[:n], Y[:n]), model.predict_on_batch(X[:n]).shape) for n in SIZES
    ]


def counted(model):
    """Has the model count how often its steps are traced."""
    traces, step = [], model.train_step
    model.train_step = lambda data: traces.append(1) or step(data)
    return traces


@pytest.mark.parametrize("kind", [keras.Sequential, Overriding])
def test_steps_on_batches_are_those_without_and_traced_once(kind):
    """Where that is asked for: Keras traces for the first sizes, and anew for the others."""
    keras.utils.set_random_seed(1)
    model, other = make(kind), make()
    other.set_weights(model.get_weights())
    traces, found = counted(model), Fits(Options(on_batch=True, tuning="off"))
    with every_batch(found.begin_batches):
        losses = train_by_batches(model)
    assert len(traces) == 1
    for (loss, shape), (expected, also) in zip(losses, train_by_batches(other), strict=True):
        assert (float(loss), shape) == (pytest.approx(float(expected), rel=1e-5), also)
    assert getattr(model, "calls", len(SIZES)) == len(SIZES)
    assert model.train_function is None  # it is as it was
    found.show({})
    (row,) = rows(found.ended)
    expected = (f"{kind.__name__}.train_on_batch, 4 parameters", "1", "6", "baseline", "")
    assert row[:5] == expected


@pytest.mark.parametrize("shape", [[keras.Input((3,))], []], ids=["built", "not built"])
def test_a_fit_that_is_too_short_for_a_trial_has_no_more_traces(shape):
    counts = []
    for under in (False, True):
        model = keras.Sequential([*shape, keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        traces = counted(model)
        with every.every_fit(Fits(Options()).begin) if under else contextlib.nullcontext():
            model.fit(X, Y, 2, verbose=0)
        counts.append(len(traces))
    assert counts[1] <= counts[0]


def test_a_program_s_own_step_stays_the_only_one():
    model, found = make(), Fits(Options(on_batch=True))
    with every_batch(found.begin_batches):
        step = tfaccel.accelerate_step(model, ["fused_optimizer"], verbose=0)
        for _ in range(3):
            step.train_on_batch(X, Y)
    assert step.plan.names == ("fused_optimizer",)
    found.show({})
    assert found.ended == []


def test_a_model_that_is_gone_has_its_row_and_is_not_kept():
    found = Fits(Options(on_batch=True, tuning="off"))
    with every_batch(found.begin_batches):
        model = make()
        model.train_on_batch(X, Y)
        gone = weakref.ref(model)
        copied = keras.models.clone_model(model)
        assert not any("tfaccel" in name for name in vars(copied))
        del model
        gc.collect()
        assert gone() is None
        uncompiled = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
        assert uncompiled.predict_on_batch(X).shape == (8, 1)
    assert [fit.steps for fit in found.ended] == [1]


def test_a_failure_leaves_the_batch_as_it_is():
    with every_batch(fail), pytest.warns(UserWarning, match="today"):
        assert np.isfinite(make().train_on_batch(X, Y))


def test_fits_of_a_compiled_model_share_the_callback(fits):
    model, probe = make(), Probe()
    for _ in range(2):
        model.fit(X, Y, verbose=0, callbacks=[probe])
    model.compile("sgd", "mse")
    model.fit(X, Y, verbose=0, callbacks=[probe])
    make().fit(X, Y, verbose=0, callbacks=[probe])
    (first,), (second,), (third,), (fourth,) = probe.found
    assert first is second
    assert len({id(first), id(third), id(fourth)}) == 3


def test_a_profile_of_each_fit(tmp_path):
    found, probe = Fits(Options(profile=str(tmp_path))), Probe()
    mine = tfaccel.ProfilerCallback(verbose=0)
    with every.every_fit(found.begin):
        make().fit(X, Y, verbose=0, callbacks=[probe])
        make().fit(X, Y, verbose=0, callbacks=[probe, mine])
    kinds = [{type(c).__name__ for c in both} for both in probe.found]
    assert kinds == [{"AccelCallback", "ProfilerCallback"}] * 2
    assert (tmp_path / "profile.jsonl").read_text().count('"kind": "run"') == 1


def fail(*_):
    raise RuntimeError("no callback today")


class FailsAtEnd:
    callbacks = ()

    def end(self, raised):
        raise RuntimeError("no row today")


@pytest.mark.parametrize("begin", [fail, lambda model, given: FailsAtEnd()])
def test_a_failure_leaves_the_fit_as_it_is(begin):
    with every.every_fit(begin), pytest.warns(UserWarning, match="today"):
        history = make().fit(X, Y, verbose=0)
    assert len(history.history["loss"]) == 1
    with every.every_fit(begin), warnings.catch_warnings():
        warnings.simplefilter("error")
        make().fit(X, Y, verbose=0)


def test_what_fit_raises_is_raised(fits):
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        make().fit(X, Y, epoch=3)
    stop = keras.callbacks.LambdaCallback(on_epoch_end=fail)
    with pytest.raises(RuntimeError, match="no callback today"):
        make().fit(X, Y, verbose=0, callbacks=[stop])
    assert [fit.raised for fit in fits.ended] == ["RuntimeError"]


def test_fit_is_keras_s_own_afterwards():
    before = keras.Model.fit
    with every.every_fit(lambda model, given: None):
        assert keras.Model.fit is not before
        assert keras.Model.fit.__doc__ == before.__doc__
    assert keras.Model.fit is before


def test_other_backends_are_left_alone(monkeypatch, capsys):
    found = Fits(Options())
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert found.begin(make(), []) is None
    found.show({})
    assert "runs on jax" in capsys.readouterr().err


# The table


def fit(**given):
    values = {"model": "Sequential", "parameters": 1234, "steps": 10, "plan": "xla"}
    return Fit(**{**values, "speedup": 1.25, "tuning_seconds": 0.5, **given})


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        ([fit()], [("Sequential, 1,234 parameters", "1", "10", "xla", "1.25x", "0.5 s")]),
        (
            [fit(), fit(speedup=1.5, steps=2000), fit(speedup=None)],
            [("Sequential, 1,234 parameters", "3", "2,020", "xla", "1.38x [1.25-1.50]", "1.5 s")],
        ),
        (
            [fit(plan="baseline", speedup=None, parameters=None), fit(steps=None)],
            [
                ("Sequential", "1", "10", "baseline", "", "0.5 s"),
                ("Sequential, 1,234 parameters", "1", "", "xla", "1.25x", "0.5 s"),
            ],
        ),
        (
            [fit(raised="KeyboardInterrupt")],
            [
                (
                    "Sequential, 1,234 parameters (KeyboardInterrupt)",
                    *("1", "10", "xla", "1.25x", "0.5 s"),
                )
            ],
        ),
        ([], []),
    ],
)
def test_fits_of_a_kind_share_a_row(fits, expected):
    assert rows(fits) == expected


def test_each_reason_is_told_once():
    fits = [fit(note="old"), fit(note="too short"), fit(model="Other", note="too short")]
    said = [str(line) for line in closing(fits, ["X=1 was set."]).renderables[1:]]
    assert said == ["tfaccel: too short", "tfaccel: X=1 was set."]


def test_a_program_that_forks_has_one_table(monkeypatch, capsys):
    watch = Watch(Options(), {"A": "1"})
    with contextlib.ExitStack() as patches:
        watch._patches = patches
        watch.begin(keras)
        make().fit(X, Y, verbose=0)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    watch.end()
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    watch.end()
    out, err = capsys.readouterr()
    assert (out, "A=1 was set" in err, err.count("Sequential")) == ("", True, 1)


PROGRAM = """
import keras, numpy as np
keras.utils.set_random_seed(1)
x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
model.compile("sgd", "mse")
for _ in range(2):
    print(model.fit(x, x[:, :1], 8, 2, 0).history)
print(model.predict(x[:1], verbose=0))
"""


def test_a_program_trains_as_without(tmp_path, capsys):
    """Without it in this process, as TensorFlow takes longer to import than all of it."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    runpy.run_path(str(script))
    plain = capsys.readouterr().out
    environ = {"TF_ENABLE_ONEDNN_OPTS": str(int(onednn_is_on()))}
    status, out, said = ended([*RUN, str(script)], tmp_path, environ=environ)
    assert (status, out) == (0, plain), said
    row = next(line for line in said.splitlines() if "Sequential" in line)
    assert row.split()[:6] == ["Sequential,", "19", "parameters", "2", "16", "baseline"]


WORKER = """
import multiprocessing, sys
def trained(number):
    import keras, numpy as np
    from tfaccel.compat.keras_private import running_callbacks
    class Probe(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.names = [type(c).__name__ for c in running_callbacks(self.model)]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    probe = Probe()
    model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0, callbacks=[probe])
    return sorted(name for name in probe.names if name in ("AccelCallback", "ProfilerCallback"))
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.map(trained, [1])[0])
"""


@pytest.mark.parametrize(
    "method",
    ["spawn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("fork", "forkserver"))],
)
def test_fits_of_workers_are_accelerated(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    words = [*RUN, "--profile=profiles", str(script), method]
    status, out, said = ended(words, tmp_path)
    assert (status, out) == (0, "['AccelCallback', 'ProfilerCallback']\n"), said
    (profile,) = (tmp_path / "profiles").glob("process-*/profile.jsonl")
    assert profile.stat().st_size
    assert said.count("tfaccel") == 0, said  # of workers nothing is told


def test_a_worker_that_can_t_begin_does_its_work(capsys):
    def fails(given):
        raise OSError("no fits today")

    process = spawned.unpickled(fails, None, complex, (1, 2))
    assert process == 1 + 2j
    assert "no fits today" in capsys.readouterr().err


def test_a_process_object_is_pickled_with_what_comes_first(monkeypatch):
    begun = []
    monkeypatch.setattr(spawned, "_begun_in", [])
    monkeypatch.setattr(process.BaseProcess, "__reduce_ex__", process.BaseProcess.__reduce_ex__)
    spawned.first_in_workers(begun.append, "words")
    one = multiprocessing.get_context("spawn").Process(name="worker", target=print)
    make, words, *rest = one.__reduce_ex__(2)
    assert make is spawned.unpickled and rest[0]["_name"] == "worker"
    assert isinstance(make(*words), type(one)) and begun == []  # this process began it
    monkeypatch.setattr(spawned, "_begun_in", [])
    make(*words)
    assert begun == ["words"]
    monkeypatch.setattr(spawned, "_is_found", lambda: False)
    assert one.__reduce_ex__(2)[0] is not spawned.unpickled
