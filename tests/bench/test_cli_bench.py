"""`tfaccel bench`, and the batches that it makes up."""

import json
import subprocess

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from benched import feed_for, make
from clocks import FakeClock
from command_line import call

from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.cli import _bench_measure, bench
from tfaccel.cli._bench_measure import Wanted, measure
from tfaccel.cli._bench_result import BenchResult, BenchRow, machine_line
from tfaccel.cli._command import UsageError
from tfaccel.cli._progress import progress
from tfaccel.cli.inputs.models import Chosen
from tfaccel.core.plan import Plan
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.passes import FusedNorm, FusedOptimizer

layers = keras.layers
FUSED = Plan((FusedOptimizer(),))


@pytest.fixture
def told():
    with progress() as found:
        yield found


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "small.keras"
    make(layers.Dense(4), layers.Dense(1)).save(path)
    return path


# Measuring


def test_each_pass_alone_by_a_clock_that_every_look_moves_on(told, monkeypatch):
    """Each step takes a second, so nothing is faster than anything."""
    monkeypatch.setattr(_bench_measure, "NAMES", ("fused_norm", "mixed_precision"))
    model = make(layers.Dense(4), layers.BatchNormalization(), layers.Dense(1))
    before = [w.numpy() for w in model.weights]
    rows, notes = measure(
        model, feed_for(model), Wanted(False, True, (FUSED,)), 1e6, told, FakeClock(step=1.0)
    )
    by_plan = {row.plan: row for row in rows}
    assert [*by_plan] == ["baseline", "fused_optimizer", "fused_norm", "mixed_precision"]
    for name in ("baseline", "fused_optimizer", "fused_norm"):
        row = by_plan[name]
        assert (row.step_seconds, row.step_seconds_interval) == (1.0, (1.0, 1.0))
        assert (row.speedup, row.speedup_interval) == (1.0, (1.0, 1.0))
        assert row.samples_per_second == 4.0
        assert row.compile_seconds == 0.0
        assert row.device == "CPU"
    assert by_plan["baseline"].verdict == "baseline"
    assert by_plan["fused_norm"].reason == "not faster beyond the spread"
    assert by_plan["mixed_precision"].verdict in ("refused", "slower")
    assert notes == []
    for a, b in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(a, b.numpy())
    assert not model.optimizer.iterations.numpy()


def test_what_there_is_no_time_for_is_said(told):
    model = make(layers.Dense(1))
    rows, notes = measure(
        model, feed_for(model), Wanted(True, True), 0.0, told, FakeClock(step=1.0)
    )
    tried = [row.plan for row in rows if row.verdict not in ("refused", "irrelevant", "chosen")]
    assert tried == []
    assert rows[0].verdict == "chosen"
    assert notes[0].startswith("The tuner chose stock Keras. Not tried for want of time")
    assert "Not tried for want of time: fused_optimizer (about 15 s, 0 s left)." in notes


def test_the_chosen_plan_has_its_fresh_speedup_and_its_fresh_times(told, monkeypatch):
    """What was measured again after the choice counts, not what won by luck."""

    def chosen(workload, bench, names, seconds, on_trial):
        bench.try_plan(FUSED)
        bench.seconds[FUSED] = [0.5, 0.25, 0.75]
        bench.baseline_seconds = [1.0, 2.0, 3.0]
        lucky = Trial(FUSED, Outcome.FASTER, "", 0.5, 0.1, Speedup(9.0, 8.0, 10.0, 6))
        gain = Speedup(2.0, 1.5, 2.5, 6)
        trials = (Trial(Plan(), Outcome.BASELINE, step_seconds=1.0, speedup=Speedup()), lucky)
        return Report(trials, FUSED, gain)

    monkeypatch.setattr(_bench_measure, "tune_workload", chosen)
    model = make(layers.Dense(1))
    rows, notes = measure(
        model, feed_for(model), Wanted(True, False), 1e6, told, FakeClock(step=1.0)
    )
    baseline, best = rows
    assert (baseline.step_seconds, baseline.step_seconds_interval) == (2.0, (1.0, 3.0))
    assert (best.step_seconds, best.step_seconds_interval) == (0.5, (0.25, 0.75))
    assert (best.speedup, best.speedup_interval) == (2.0, (1.5, 2.5))
    assert (best.verdict, best.samples_per_second) == ("chosen", 8.0)
    assert notes == ["The tuner chose fused_optimizer: 2.00x [1.50-2.50], measured anew."]


def test_several_steps_an_execution_are_counted(told):
    model = make(layers.Dense(1))
    model.compile("adam", "mse", steps_per_execution=3)
    rows, _ = measure(model, feed_for(model), Wanted(False, False), 1e6, told, FakeClock(step=1.0))
    assert rows[0].samples_per_second == 12.0


# The command


def test_the_command(model_file, capsys):
    found = call(
        bench.COMMAND, model_file, "--batch_size=8", "--plans=fused_optimizer", "--max_seconds=60"
    )
    assert [row.plan for row in found.rows] == ["baseline", "fused_optimizer"]
    assert found.batch_size == 8
    assert found.parameters == 33
    assert found.machine["keras"] == keras.__version__
    given = "--batch_size=8 --plans=fused_optimizer --max_seconds=60.0 --devices=auto"
    assert found.command == f"tfaccel bench {model_file} {given}"
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "fused_optimizer: " in shown.err
    data = json.loads(found.to_json())
    assert [BenchRow.from_dict(row) for row in data["rows"]] == list(found.rows)
    assert "| baseline |" in found.to_markdown()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--plans="], "--plans must name"),
        (["--plans=fast"], "--plans takes.*Received: 'fast': No pass is called 'fast'"),
        (["--plans=xla+xla"], "must not hold a pass twice"),
        (["--plans=nowhere.json"], "there is no such plan"),
        (["--devices=gpu"], "TensorFlow sees no GPU"),
        (["--data=nowhere.npz"], "there is no such file: nowhere.npz"),
        (["--input_shape=7"], "--input_shape must fit.*'.*', \\(6\\). Received: \\(7\\)"),
    ],
)
def test_words_that_can_not_be_taken(model_file, words, message, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda *kinds: [])
    with pytest.raises(UsageError, match=message):
        call(bench.COMMAND, model_file, *words)


def test_an_eager_model_has_no_step_to_time(monkeypatch):
    model = make(layers.Dense(1))
    model.compile("adam", "mse", run_eagerly=True)
    monkeypatch.setattr(bench, "load_model", lambda name, values: Chosen(name, model))
    with pytest.raises(UsageError, match="run_eagerly"):
        call(bench.COMMAND, "m.keras")


@pytest.mark.parametrize(
    ("asked", "has_gpu", "expected"),
    [
        ("auto", False, (True, False)),
        ("auto", True, (True, True)),
        ("cpu", False, (True, False)),
        ("cpu", True, (False, True)),
        ("gpu", True, (True, False)),
    ],
)
def test_where_to_measure(asked, has_gpu, expected):
    assert bench.chosen_devices(asked, has_gpu) == expected


def row(device="CPU", plan="baseline", **more):
    return BenchRow(device, plan, "baseline", **more)


def result(rows, notes=()):
    machine = {"cpu": "some CPU", "cores": 2, "isa": ["avx2"], "gpus": [{"name": "some GPU"}]}
    return BenchResult(
        "m", 12345, 8, "random samples", machine, "tfaccel bench m", 61.2, rows, notes
    )


def test_the_cpu_beside_a_gpu_is_measured_by_a_process_that_sees_none():
    seen = {}

    def run(words, environment):
        seen["words"], seen["environment"] = words, environment
        return result((row(step_seconds=0.5),), ("Said.",)).to_json()

    rows, notes = bench.cpu_rows(["bench", "m", "--devices=auto"], 30.0, run)
    assert rows == [row(step_seconds=0.5)]
    assert notes == ["On the CPU: Said."]
    assert seen["environment"] == {"CUDA_VISIBLE_DEVICES": "-1"}
    assert seen["words"][1:] == [
        *("-m", "tfaccel", "bench", "m", "--devices=auto"),
        *("--devices=cpu", "--max_seconds=30.0", "--format=json"),
    ]


def test_a_cpu_that_can_not_be_measured_costs_no_result():
    def run(words, environment):
        raise subprocess.CalledProcessError(1, words)

    rows, notes = bench.cpu_rows(["bench", "m"], 30.0, run)
    assert rows == []
    assert notes[0].startswith("The CPU could not be measured: ")


def test_the_gpu_against_the_cpu():
    rows = [row(step_seconds=0.5), row("GPU", step_seconds=0.05), row("GPU", "xla")]
    assert bench.gpu_sentence(rows) == [
        "By stock Keras a step takes the CPU 10.0 times as long as the GPU."
    ]
    assert bench.gpu_sentence(rows[:1]) == []


# The table


def test_cells():
    full = BenchRow(
        device="GPU",
        plan="fused_norm",
        verdict="chosen",
        step_seconds=0.0123,
        step_seconds_interval=(0.012, 0.1304),
        samples_per_second=2601.6,
        speedup=1.5,
        speedup_interval=(1.4, 1.62),
        compile_seconds=2.04,
        drift=3e-4,
        peak_bytes=3 << 29,
    )
    assert full.cells() == (
        *("GPU", "fused_norm", "12.3 [12.0, 130]", "2602", "1.50x [1.40, 1.62]", "2.0"),
        *("3.0e-04", "1.50 GiB", "chosen"),
    )
    refused = BenchRow("CPU", "xla", "refused", "layer 'x' [is] in the way")
    assert refused.cells() == ("CPU", "xla", "", "", "", "", "", "", "refused")
    assert BenchRow.from_dict(json.loads(json.dumps(vars(full)))) == full


def test_everything_is_shown(capsys):
    rows = (row(step_seconds=0.5), BenchRow("CPU", "xla", "refused", "layer [x] is in the way"))
    found = result(rows, ("Compiled with loss mse.",))
    rich.console.Console(width=140).print(found)
    shown = capsys.readouterr().out
    for text in (
        "m: 12,345 parameters, batches of 8 from random samples",
        "xla: layer [x] is in the way",
        "Compiled with loss mse.",
        "On some CPU, 2 cores + some GPU (avx2).",
        "Took 61 s. Again: tfaccel bench m",
    ):
        assert text in shown
        assert text in found.to_markdown()


def test_a_machine_of_which_nothing_is_known():
    assert machine_line({"cpu": None, "gpus": []}) == "unknown CPU, ? cores"


def test_in_a_terminal_a_line_changes_and_on_standard_output_is_nothing(capsys, monkeypatch):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    with progress(screen) as told:
        told.stage("Trying plans", 10.0)
        told.trial(Trial(FUSED, Outcome.SLOWER, "not [faster]", 0.1, 0.2, Speedup(0.9, 0.8, 1.1)))
        told.stage("Ending")
    shown = screen.getvalue()
    assert "fused_optimizer: slower, 0.90x [0.80-1.10] (not [faster])" in shown
    assert "Trying plans" in shown
    assert capsys.readouterr().out == ""


def test_elsewhere_there_are_plain_lines(capsys):
    with progress() as told:
        told.stage("Trying plans", 10.0)
        told.trial(Trial(Plan((FusedNorm(),)), Outcome.REFUSED, "x" * 200))
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["Trying plans (at most 10 s)", f"fused_norm: refused ({'x' * 200})"]
