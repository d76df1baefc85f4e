import dataclasses
import json

import pytest

from tfaccel.autotune.report import Report, show
from tfaccel.autotune.trial import Trial
from tfaccel.core.plan import Plan
from tfaccel.core.unsupported import Refusal
from tfaccel.measure.numerics import Drift
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.passes import (
    XLA,
    FusedActivation,
    FusedNorm,
    FusedOptimizer,
    Kernels,
    StepBatching,
)

WON = Plan((FusedNorm(),))


@pytest.fixture
def report() -> Report:
    gain = Speedup(2.0, 1.9, 2.2, 9)
    return Report(
        trials=(
            Trial(
                Plan(), Outcome.BASELINE, compile_seconds=2.0, step_seconds=0.1, speedup=Speedup()
            ),
            Trial(Plan((XLA(),)), Outcome.REFUSED, "layer 'lookup' can't be compiled [by XLA]"),
            Trial(WON, Outcome.FASTER, "", 3.0, 0.05, gain, Drift(gradient=2e-6), 1 << 30),
        ),
        plan=WON,
        gain=gain,
        tuning_seconds=6.0,
    )


def test_numbers(report):
    assert report.speedup == 2.0
    assert report.speedup_interval == (1.9, 2.2)
    assert report.break_even_steps == 120  # 6 s at 50 ms saved a step


def test_a_baseline_never_breaks_even(report):
    assert Report(report.trials[:1], Plan(), tuning_seconds=1.0).break_even_steps is None
    assert Report((), Plan()).break_even_steps is None


def test_it_survives_json(report):
    assert Report.from_json(report.to_json()) == report


@pytest.mark.parametrize("text", ["", "null", "{}", '{"schema": 0}', '{"schema": 1, "trials": 3}'])
def test_text_that_is_no_report_is_told_so(text):
    with pytest.raises(ValueError, match=r"not a tfaccel report|schema"):
        Report.from_json(text)


def test_the_table_says_what_was_won_and_why_not(report, capsys):
    show(report)
    shown = capsys.readouterr().out
    for text in (
        "2.00x [1.90-2.20]",
        "50.0 ms",
        "2.0e-06",
        "xla refuses: layer",
        "chosen",
        "[by XLA]",
        "120 steps",
    ):
        assert text in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_names_of_passes_are_not_broken_on_a_terminal(report, capsys):
    plan = Plan((FusedNorm(), FusedActivation(), FusedOptimizer(), Kernels()))
    trial = Trial(plan, Outcome.UNFAITHFUL, "", 123.4, 12.3456, Speedup(10.0, 9.25, 12.5), Drift(1))
    show(dataclasses.replace(report, trials=(*report.trials, trial)))
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("fused_activation", "fused_optimizer", "10.00x [9.25-12.50]", "unfaithful"):
        assert word in shown


def test_what_does_not_concern_the_model_is_one_line(report, capsys):
    nothing = Refusal.NOTHING("the model has none", "add one")
    trials = [Trial.refused(Plan((item(),)), nothing) for item in (FusedOptimizer, FusedActivation)]
    report = dataclasses.replace(report, trials=(*report.trials, *trials))
    assert not {"fused_optimizer", "fused_activation"} & {row[0] for row in report.rows()}
    show(report)
    assert capsys.readouterr().out.count("fused_optimizer, fused_activation") == 1
    show(report, verbose=2)
    shown = capsys.readouterr().out
    assert shown.count("the model has none; add one") == 2
    assert Report.from_json(report.to_json()) == report
    data = report.to_dict()
    for trial in data["trials"]:
        del trial["refusal"]  # as older reports have it
    assert {trial.refusal for trial in Report.from_json(json.dumps(data)).trials} == {None}


def test_a_pass_and_its_options_are_broken_between_them(report, capsys):
    plan = Plan((FusedNorm(), StepBatching(steps=16)))
    trial = Trial(plan, Outcome.FASTER, "", 1.0, 12.3, Speedup(2.0, 1.9, 2.2), Drift(1e-4))
    show(dataclasses.replace(report, trials=(*report.trials, trial)))
    words = capsys.readouterr().out.split()
    assert "step_batching" in words
    assert "(steps=16)" in words


def test_the_steps_under_a_plan_save_their_share(report):
    assert report.saved_seconds(100) == pytest.approx(5.0)  # 50 ms of 100, a hundred times


def test_markdown_has_the_same_rows(report):
    text = report.to_markdown()
    assert text.count("\n| ") == 3
    assert "xla refuses: layer 'lookup'" in text
