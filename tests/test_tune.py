import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfaccel
from tfaccel.autotune.plan_cache import PlanCache

layers = keras.layers


def make(built=True):
    body = [layers.Dense(16, activation="relu"), layers.BatchNormalization(), layers.Dense(1)]
    model = keras.Sequential([keras.Input((5,)), *body] if built else body)
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse", metrics=["mae"])
    return model


def batches(count=6, size=8):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count * size, 5)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(size)


@pytest.mark.parametrize("built", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_it_trains_nothing(built):
    model = make(built)
    if not built:
        model(next(iter(batches()))[0])
    before = [v.numpy() for v in model.variables]
    report = tfaccel.tune(
        model,
        batches(),
        includes=["fused_norm", "fused_optimizer"],
        max_tuning_seconds=1e6,
        verbose=0,
    )
    assert report.trials[0].outcome is tfaccel.Outcome.BASELINE
    assert len(report.trials) >= 2
    for a, b in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    assert int(model.optimizer.iterations.numpy()) == 0
    assert all(not np.any(v.numpy()) for v in model.optimizer.variables[2:])
    assert all(not np.any(v.numpy()) for m in model.metrics for v in m.variables)


def test_one_plan_is_measured():
    plan = tfaccel.Plan((tfaccel.passes.FusedOptimizer(),))
    report = tfaccel.tune(make(), batches(), plan, verbose=0)
    assert [trial.plan for trial in report.trials] == [tfaccel.Plan(), plan]
    won = report.trials[1].outcome is tfaccel.Outcome.FASTER
    assert report.plan == (plan if won else tfaccel.Plan())


def test_what_wins_is_kept_for_the_callback(tmp_path):
    model = make()
    report = tfaccel.tune(
        model,
        batches(),
        includes=["fused_optimizer"],
        max_tuning_seconds=1e6,
        cache_dir=tmp_path,
        verbose=0,
    )
    (file,) = tmp_path.glob("*.json")
    assert PlanCache(tmp_path).load(file.stem) == report
    accel = tfaccel.AccelCallback(includes=["fused_optimizer"], cache_dir=tmp_path, verbose=0)
    model.fit(batches(), verbose=0, callbacks=[accel])
    assert accel.report.cached


def test_a_search_that_ran_out_of_time_is_not_kept(tmp_path):
    arguments = {"includes": ["fused_optimizer"], "cache_dir": tmp_path, "verbose": 0}
    model = make()
    report = tfaccel.tune(model, batches(), max_tuning_seconds=0, **arguments)
    assert (report.plan.is_baseline, report.complete) == (True, False)
    assert not list(tmp_path.iterdir())
    accel = tfaccel.AccelCallback(tuning_share=1.0, max_tuning_seconds=1e6, **arguments)
    model.fit(batches().repeat(10**4), epochs=1, steps_per_epoch=5, verbose=0, callbacks=[accel])
    assert not accel.report.cached


@pytest.mark.slow
def test_what_was_kept_of_a_search_without_a_choice_is_not_believed(tmp_path):
    """Such files were written once."""
    arguments = {"includes": ["fused_optimizer"], "cache_dir": tmp_path, "verbose": 0}
    report = tfaccel.tune(make(), batches(), max_tuning_seconds=1e6, **arguments)
    (file,) = tmp_path.iterdir()
    undecided = dataclasses.replace(report, plan=tfaccel.Plan(), complete=False)
    PlanCache(tmp_path).save(file.stem, undecided)
    accel = tfaccel.AccelCallback(**arguments)
    make().fit(batches(), verbose=0, callbacks=[accel])
    assert not accel.report.cached


def test_it_prints_its_table(capsys):
    tfaccel.tune(make(), batches(), ["fused_optimizer"], verbose=1)
    assert "fused_optimizer" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (np.ones((3, 5)), TypeError, "must be a tf.data.Dataset.*from_tensor_slices"),
        (batches().take(0), ValueError, "at least one batch"),
    ],
)
def test_wrong_data_is_told_so(dataset, error, message):
    with pytest.raises(error, match=message):
        tfaccel.tune(make(), dataset)


def test_a_model_that_is_not_compiled_is_told_so():
    with pytest.raises(ValueError, match="must be compiled"):
        tfaccel.tune(keras.Sequential([layers.Dense(1)]), batches())


def test_a_model_that_runs_eagerly_is_left_alone():
    model = make()
    model.compile("adam", "mse", run_eagerly=True)
    report = tfaccel.tune(model, batches(), verbose=0)
    assert (report.trials, report.plan.is_baseline) == ((), True)
    assert "run_eagerly" in report.note
