"""`tfaccel bench --mode=inference`: predictions with and without tfaccel, in one table."""

import json

import inference_models
import keras
import numpy as np
import pytest
from command_line import call
from fake_engine import FakeEngine

from tfaccel import Outcome, Plan, Speedup
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.cli import bench
from tfaccel.cli._bench_inference import joined
from tfaccel.cli._command import UsageError
from tfaccel.passes import FrozenWeights

layers = keras.layers
winning = inference_models.winning


@pytest.fixture
def folder(tmp_path):
    model = keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")])
    model.save(tmp_path / "m.keras")
    x = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
    np.savez(tmp_path / "x.npz", x=x, y=np.zeros(12, "int64"))
    return tmp_path


def inference(folder, *words):
    return call(bench.COMMAND, folder / "m.keras", "--mode=inference", "--batch_size=4", *words)


def test_plans_and_engines_in_one_table(folder, winning, capsys):
    found = inference(folder, f"--data={folder / 'x.npz'}", "--plans=frozen_weights,fake_engine")
    plans = [trial.plan.names for trial in found.report.trials]
    assert sorted(plans) == [(), ("fake_engine",), ("frozen_weights",)]
    assert found.report.trials[0].plan.is_baseline and not found.report.plan.is_baseline
    headings, rows = found.report.table()
    assert {"speedup", "error", "top-1", "p99"} <= set(headings) and len(rows) == 3
    assert json.loads(found.to_json())["predicts"]
    assert any("Batches of 4" in note for note in found.notes)
    assert capsys.readouterr().out == ""


def test_a_search_by_random_samples(folder):
    FakeEngine.sizes.clear()
    found = inference(folder, "--plans=auto", "--max_seconds=0")
    assert found.report.trials[0].plan.is_baseline
    assert "random samples" in found.notes[-2]


def test_a_model_by_name():
    words = ["--mode=inference", "--batch_size=2", "--plans=frozen_weights"]
    found = call(bench.COMMAND, "mlp", *words)
    assert found.report.trials[1].plan.names == ("frozen_weights",)


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--plans="], "--plans must name"), (["--plans=fast"], "No pass is called 'fast'")],
)
def test_words_that_can_not_be_taken(words, message, folder):
    with pytest.raises(UsageError, match=message):
        inference(folder, *words)


def test_the_fastest_of_several_reports_is_chosen():
    frozen, fake = Plan((FrozenWeights(),)), Plan((FakeEngine(),))
    first = Trial(Plan(), Outcome.BASELINE)

    def report(plan, gain):
        trials = (first, Trial(plan, Outcome.FASTER))
        return Report(trials, plan, Speedup(gain, gain, gain, 6), 1.0, predicts=True)

    found = joined([report(frozen, 1.5), report(fake, 2.0), Report((first,), Plan())])
    assert found.plan == fake and found.tuning_seconds == 2.0
    assert [trial.plan for trial in found.trials] == [Plan(), fake, frozen]
