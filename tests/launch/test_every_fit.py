"""Every `fit` has its callback once under `tfaccel run`, and a closing row."""

import contextlib
import gc
import warnings
import weakref

import keras
import numpy as np
import pytest
from probes import X, Y, make

import tfaccel
from tfaccel.compat import keras_private
from tfaccel.launch import every_fit as every
from tfaccel.launch.closing import rows
from tfaccel.launch.every_batch import every_batch
from tfaccel.launch.fits import Fits
from tfaccel.launch.start import Options


class Probe(keras.callbacks.Callback):
    """Notes which callbacks of tfaccel's are in the fit with it."""

    def __init__(self):
        super().__init__()
        self.found = []

    def on_train_begin(self, logs=None):
        kinds = (tfaccel.AccelCallback, tfaccel.ProfilerCallback)
        running = keras_private.running_callbacks(self.model)
        self.found.append([c for c in running if isinstance(c, kinds)])


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
