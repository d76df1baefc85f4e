"""`tfaccel bench --workers`: the parts of a step, the model of its cost, the command."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import rich.console
from clocks import FakeClock
from command_line import call

from tfaccel.cli import bench
from tfaccel.cli._command import UsageError
from tfaccel.cli.scaling import measuring, worker
from tfaccel.cli.scaling.cost import Parts, RingCost, fitted, nonnegative, parts
from tfaccel.cli.scaling.result import ScalingRow, predicted
from tfaccel.launch.workers import binding

ROOT = pathlib.Path(__file__).parents[1]
RING = RingCost(10**8, 2e-9, 5e-4)


# The model of the cost


def test_a_ring_costs_what_its_formula_says():
    assert RING.seconds(1) == 0.0
    assert RING.seconds(2) == pytest.approx(0.2 + 1e-3)
    assert RING.seconds(4) == pytest.approx(0.3 + 3e-3)
    # A gigabit a second is 8 ns a byte, on top of the 2 that were measured.
    assert RING.seconds(4, 1) == pytest.approx(1.5 + 3e-3)
    assert RING.seconds(10**6) == pytest.approx(0.4 + 1e3, rel=1e-4)


@pytest.mark.parametrize("workers", [[2, 3], [1, 2, 3, 4], [2, 8, 16, 64]])
@pytest.mark.parametrize(("per_byte", "latency"), [(2e-9, 5e-4), (2e-9, 0.0), (0.0, 5e-4)])
def test_what_made_the_times_is_found_again(workers, per_byte, latency):
    ring = RingCost(10**8, per_byte, latency)
    found = fitted(workers, [ring.seconds(n) for n in workers], 10**8)
    assert found.seconds_per_byte == pytest.approx(per_byte, rel=1e-9, abs=1e-18)
    assert found.latency_seconds == pytest.approx(latency, rel=1e-9, abs=1e-12)
    assert found.residual_seconds < 1e-12
    assert found.points == len({*workers} - {1})


def test_noise_is_told_by_the_residual_and_no_unknown_is_negative():
    found = fitted([2, 3, 4], [0.3, 0.2, 0.1], 100)  # more workers are faster, as no ring is
    assert found.seconds_per_byte > 0
    assert found.latency_seconds == 0.0
    sent = np.array([1, 4 / 3, 3 / 2])
    best = (sent @ [0.3, 0.2, 0.1]) / (sent @ sent)
    assert found.seconds_per_byte == pytest.approx(best / 100)
    off = np.sqrt(np.mean((sent * best - [0.3, 0.2, 0.1]) ** 2))
    assert found.residual_seconds == pytest.approx(off)


def test_nothing_is_better_than_what_is_negative():
    assert nonnegative(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([-1.0, -1.0])) == (
        [0.0, 0.0],
        1.0,
    )


@pytest.mark.parametrize("workers", [[], [1], [1, 2], [3, 3]])
def test_too_few_points(workers):
    with pytest.raises(ValueError, match=r"two numbers of workers, at least, above 1\. Received: "):
        fitted(workers, [0.1] * len(workers), 100)


def test_a_model_without_gradients_sends_nothing():
    with pytest.raises(ValueError, match="gradient_bytes must be positive"):
        fitted([2, 3], [0.1, 0.1], 0)


# The parts of a step


def test_parts_of_a_step():
    # Each step waits for another worker.
    assert parts(4.0, [[1.0, 3.0, 1.0], [3.0, 1.0, 3.0]]) == Parts(2.0, 1.0, 1.0)
    assert parts(1.0, [[1.0, 1.0]]) == Parts(1.0, 0.0, 0.0)
    assert parts(0.5, [[1.0, 1.0], [2.0, 2.0]]).all_reduce == 0.0  # all of it is hidden


def told(together, alone, **more):
    facts = {"samples": 8, "source": "s", "parameters": 5, "gradient_bytes": 10**8, "notes": ["N."]}
    return {"together": together, "alone": alone, **facts, **more}


def test_a_step_is_as_long_as_that_of_the_slowest():
    row = measuring.row_of([told([1.0, 2.0], [1.0, 1.0]), told([3.0, 1.0], [0.5, 0.5])])
    assert row == ScalingRow(2, 2.5, 3.2, Parts(0.75, 0.25, 1.5))


def rows_of(counts, ring=RING, compute=0.5, samples=4):
    return [
        ScalingRow(n, compute + ring.seconds(n), n * samples / (compute + ring.seconds(n)), found)
        for n in counts
        for found in [Parts(compute, 0.0, ring.seconds(n))]
    ]


def test_what_more_workers_would_take():
    cost, predictions, notes = predicted(rows_of([1, 2, 4]), 10**8)
    assert cost.seconds_per_byte == pytest.approx(2e-9)
    assert [(p.workers, p.gigabits_per_second) for p in predictions] == [
        (n, link) for n in (8, 64, 512) for link in (10, 100)
    ]
    first = predictions[0]
    # 2 * 7/8 of 100 MB at 2 + 0.8 ns, and 14 messages.
    assert first.step_seconds == pytest.approx(0.5 + 1.75 * 0.28 + 14 * 5e-4)
    assert first.samples_per_second == pytest.approx(8 * 4 / first.step_seconds)
    assert first.efficiency == pytest.approx(0.5 / first.step_seconds)
    assert "bandwidth 4.00 Gbit/s, latency 0.5 ms" in notes[0]
    assert "which two unknowns always meet" in notes[0]
    assert predicted(rows_of([1, 2]), 10**8)[:2] == (None, ())


# What a worker measures


def test_times_of_steps():
    met = []
    times = worker.StepTimes(lambda: met.append(0), FakeClock(step=1.0))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    model.fit(np.ones((6, 2)), np.ones((6, 1)), batch_size=2, verbose=0, callbacks=[times])
    assert times.seconds == [1.0] * 3
    assert len(met) == 3
    assert worker.gradient_bytes(model) == 12


# The command


@pytest.fixture
def fake_workers(monkeypatch):
    """Workers that write made-up times; what they were started by."""
    started = []

    def start(words, shares):
        started.append((words, shares))
        folder = pathlib.Path(words[-1].removeprefix("--launched="))
        count = len(shares)
        for index in range(count):
            seconds = [0.5 + RING.seconds(count)] * 3
            found = told(seconds, [0.5] * 3, samples=4 * count)
            (folder / f"worker-{index}.json").write_text(json.dumps(found))
        return 0

    monkeypatch.setattr(measuring, "start", start)
    for name in ("TF_CONFIG", "SLURM_PROCID", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return started


def test_the_command(fake_workers, capsys):
    words = ("m", "--batch_size=4", "--max_seconds=60", "--workers=4,1,2")
    found = call(bench.COMMAND, *words)
    assert [len(shares) for _, shares in fake_workers] == [1, 2, 4]
    for given, _ in fake_workers:
        assert given[:-1] == ["bench", "m", "--batch_size=4", "--max_seconds=20.0"]
    assert found.command == "tfaccel bench m --batch_size=4 --max_seconds=60.0 --workers=1,2,4"
    assert found.batch_size == 4
    assert [row.workers for row in found.rows] == [1, 2, 4]
    assert found.rows[1].parts.all_reduce == pytest.approx(RING.seconds(2))
    assert found.cost.latency_seconds == pytest.approx(5e-4)
    assert len(found.predictions) == 6
    assert found.notes[0] == "N."
    data = json.loads(found.to_json())
    assert data["rows"][2]["parts"]["compute"] == 0.5
    assert "| 512 | 100 |" in found.to_markdown()
    rich.console.Console(width=140).print(found)
    shown = capsys.readouterr()
    assert "batches of 4 a worker from s" in shown.out
    assert "Training by 4 workers" in shown.err


def test_too_few_for_a_prediction_are_measured_and_no_more(fake_workers):
    found = call(bench.COMMAND, "m", "--workers=1,2")
    assert found.cost is None and found.predictions == ()
    assert any(note.startswith("Nothing is predicted: ") for note in found.notes)
    assert len(found.rows) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--workers="], "such as 1,2,3,4"),
        (["--workers=1,0"], "--workers: each must be a whole number from 1"),
        (["--workers=2", "--mode=inference"], "leave out --mode"),
        (["--workers=2", "--plans=xla"], "leave out --mode, --plans"),
        (["--workers=2", "--devices=cpu"], "and --devices"),
    ],
)
def test_words_that_can_not_be_taken(fake_workers, words, said):
    with pytest.raises(UsageError, match=said):
        call(bench.COMMAND, "m", *words)
    assert not fake_workers


def test_a_worker_that_fails(fake_workers, monkeypatch):
    monkeypatch.setattr(measuring, "start", lambda words, shares: 3)
    with pytest.raises(UsageError, match=r"a worker of 2 failed \(exit status 3\)"):
        call(bench.COMMAND, "m", "--workers=2")


def test_others_that_start_workers(fake_workers, monkeypatch):
    monkeypatch.setenv("RAY_JOB_ID", "01")
    with pytest.raises(UsageError, match="here this is a job of Ray"):
        call(bench.COMMAND, "m", "--workers=2")


def test_a_worker_has_the_same_cores_in_each_row(monkeypatch):
    monkeypatch.setattr(binding, "allowed_cores", lambda: {0, 1, 2, 3})
    monkeypatch.setattr(binding, "shares_of_cores", lambda cores, n: [{i} for i in range(n)])
    monkeypatch.setattr(binding, "gpus", lambda environ: [])
    assert [share.cores for share in measuring.shares_of(1, 2)] == [{0}]
    assert [share.cores for share in measuring.shares_of(2, 8)] == [{0}, {1}]
    # More than there are share all.
    assert [share.cores for share in measuring.shares_of(5, 8)] == [set()] * 5


def test_a_worker_has_the_same_gpus_in_each_row(monkeypatch):
    monkeypatch.setattr(binding, "gpus", lambda environ: ["a", "b", "c", "d"])
    (alone,) = measuring.shares_of(1, 2)
    assert alone.environ == {"CUDA_VISIBLE_DEVICES": "a,b"}
    with pytest.raises(UsageError, match="Use --workers 4"):
        measuring.shares_of(1, 5)


@pytest.mark.slow
def test_real_workers():
    words = ["bench", "cnn", "--workers=1,2,3", "--batch_size=2", "--max_seconds=0"]
    words += ["--input_shape=8,8,3", "--optimizer=sgd"]
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel", *words, "--format=json"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert [row["workers"] for row in found["rows"]] == [1, 2, 3]
    assert all(row["step_seconds"] > 0 for row in found["rows"])
    assert found["gradient_bytes"] == 4 * found["parameters"]
    assert found["batch_size"] == 2
    assert found["cost"]["points"] == 2
    assert [row["workers"] for row in found["predictions"]] == [8, 8, 64, 64, 512, 512]
