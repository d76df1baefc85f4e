"""Training by real processes on this machine, against one process."""

import functools
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from workers import launch, models

import tfaccel

SCENARIOS = (
    "reductions",
    "shuffled",
    "files",
    "same_as_one",
    "tuned",
    "raced",
    "accelerated",
)
SLOW_SCENARIOS = (
    "uneven",
    "last_of_one",
    "dictionaries",
    "unequal_workers",
    "resumed",
    "loss_scaled",
    "broken",
)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory):
    """What two workers found, by scenario; they are started once."""
    return started_once(tmp_path_factory, "workers", *SCENARIOS)


@pytest.fixture(scope="module")
def two_more_workers(tmp_path_factory):
    """The same for the scenarios of the slow tests."""
    return started_once(tmp_path_factory, "more-workers", *SLOW_SCENARIOS)


@pytest.fixture(scope="module")
def one_process():
    """The same training without workers: its model and its history."""
    model = models.cnn(synchronized=True)
    return model, models.train_cnn(model)


def started_once(tmp_path_factory, name, *scenarios):
    out = launch.once(
        tmp_path_factory.getbasetemp(),
        name,
        lambda out: launch.run(launch.tf_config(2), launch.HERE / "scenarios.py", out, *scenarios),
    )
    return functools.partial(results, out, 2)


def results(out, count, name):
    return [json.loads((out / f"result-{name}-{task}.json").read_text()) for task in range(count)]


def assert_same_weights(found):
    for other in found[1:]:
        for a, b in zip(found[0]["weights"], other["weights"], strict=True):
            np.testing.assert_array_equal(a, b)


def assert_trained_as(found, plain, **tolerance):
    """To the last bit, or within a tolerance; `plain` may have been validated, too."""
    for name, values in found["history"].items():
        np.testing.assert_allclose(values, plain["history"][name], **{"rtol": 0, **tolerance})
    if not tolerance:
        assert found["weights"] == plain["weights"]


def assert_same_losses(history, reference):
    """Every loss and metric of every epoch; names may differ by a number."""
    for a, b in zip(history.values(), reference.values(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4)


def test_the_loss_curve_is_that_of_one_process(two_workers, one_process):
    found = two_workers("same_as_one")
    model, reference = one_process
    assert set(reference) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert reference["loss"][-1] < 0.9 * reference["loss"][0]
    for worker in found:
        assert_same_losses(worker["history"], reference)
        for a, b in zip(worker["weights"], model.get_weights(), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)
    assert_same_weights(found)


def test_evaluation_and_prediction_cover_all_samples(two_workers, one_process):
    model, _ = one_process
    x, y = models.images(33, seed=9)
    for worker in two_workers("same_as_one"):
        np.testing.assert_allclose(
            worker["evaluation"], model.evaluate(x[:32], y[:32], verbose=0), rtol=1e-4
        )
        # A last batch of one sample: the other worker has none, and none is doubled.
        np.testing.assert_allclose(
            worker["predictions"], model.predict(x, verbose=0), rtol=1e-3, atol=1e-4
        )


@pytest.mark.slow
def test_dictionaries_and_several_outputs(two_more_workers):
    found = two_more_workers("dictionaries")
    reference = models.train_two_inputs(models.two_inputs())
    for worker in found:
        assert_same_losses(worker["history"], reference)
    assert_same_weights(found)


@pytest.mark.slow  # in a quick one a worker without a sample predicts, and a replica trains
def test_a_last_batch_of_one_sample(two_more_workers):
    assert_trained_alike(two_more_workers("last_of_one"))


@pytest.mark.slow
def test_an_uneven_last_batch(two_more_workers):
    assert_trained_alike(two_more_workers("uneven"))


def assert_trained_alike(found):
    assert_same_weights(found)
    assert found[0]["history"] == found[1]["history"]
    assert all(np.isfinite(w).all() for w in found[0]["weights"])
    assert np.isfinite(list(found[0]["history"].values())).all()


@pytest.mark.slow
def test_workers_with_different_numbers_of_batches(two_more_workers):
    found = two_more_workers("unequal_workers")
    assert_same_weights(found)
    assert found[0]["history"] == found[1]["history"]
    assert np.isfinite(list(found[0]["history"].values())).all()


def test_shuffling_without_a_seed_covers_every_sample_once(two_workers):
    found = two_workers("shuffled")
    assert sorted(found[0]["seen"] + found[1]["seen"]) == list(range(48))
    assert found[0]["seen"] != sorted(found[0]["seen"])
    for worker in found:
        assert worker["loss"] == pytest.approx(worker["expected"], rel=1e-5)


def test_files_of_ones_own(two_workers):
    batches = [worker["batches"] for worker in two_workers("files")]
    read = [list(itertools.chain(*those)) for those in batches]
    assert sorted(read, key=len) == [[*range(10)], [*range(10, 30)]]
    # As many steps on both, the last ones with nothing for the worker that is done.
    assert len(batches[0]) == len(batches[1])


@pytest.mark.slow
def test_a_stopped_training_is_resumed_by_all(two_more_workers):
    found = two_more_workers("resumed")
    for worker in found:
        assert len(worker["losses"]) == 2
        np.testing.assert_allclose(worker["losses"], worker["all_losses"][2:], rtol=1e-5)
        for a, b in zip(worker["weights"], worker["whole"], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    assert_same_weights(found)


@pytest.mark.slow
def test_only_the_chief_writes_files(two_more_workers):
    chief, other = two_more_workers("resumed")
    assert chief["files"] == ["checkpoint-0.keras"]  # Keras removes a backup at the end
    assert other["files"] == []


@pytest.mark.slow
def test_loss_scaling(two_more_workers):
    found = two_more_workers("loss_scaled")
    assert_same_weights(found)
    assert np.isfinite(list(found[0]["history"].values())).all()


def test_trials_on_all_workers_leave_no_trace(two_workers):
    """Their clocks differ, and yet they decide the same, step by step."""
    chief, other = two_workers("tuned")
    assert chief["report"] == other["report"]
    report = tfaccel.Report.from_json(chief["report"])
    outcomes = [trial.outcome.value for trial in report.trials]
    assert outcomes[0] == "baseline" and len(outcomes) == 2
    assert set(outcomes[1:]) <= {"slower", "stopped"}, report.to_markdown()
    for worker in (chief, other):
        assert_trained_as(worker["tuned"], worker["plain"])
        assert worker["again"] is True
    assert (chief["cached"], other["cached"]) == (1, 0)
    assert_same_weights([chief["tuned"], other["tuned"]])


def test_a_race_on_the_steps_of_all_workers(two_workers):
    chief, other = two_workers("raced")
    assert chief["path"] == other["path"]
    assert chief["path"][:4] == ["OBSERVE", "PREDICT", "CHECK", "RACE"], chief["report"]
    assert chief["path"][-1] in ("RUN", "STAY")
    for worker in (chief, other):
        assert_trained_as(worker["raced"], worker["plain"], rtol=2e-3)
    assert_same_weights([chief["raced"], other["raced"]])


@pytest.mark.slow
def test_a_plan_that_one_worker_cant_build_is_used_by_none(two_more_workers):
    chief, other = two_more_workers("broken")
    assert chief["report"] == other["report"]
    trials = json.loads(chief["report"])["trials"]  # the pass is known to the workers only
    assert [trial["outcome"] for trial in trials] == ["baseline", "failed"]
    assert "on another worker" in trials[1]["reason"]
    for worker in (chief, other):
        assert_trained_as(worker["found"], worker["plain"])


def test_an_accelerated_training_on_all_workers(two_workers):
    found = two_workers("accelerated")
    for worker in found:
        assert worker["plan"] == ["fused_norm", "fused_optimizer"]
        assert set(worker["accelerated"]["history"]) == set(worker["plain"]["history"])
        assert_trained_as(worker["accelerated"], worker["plain"], rtol=2e-3)
    assert_same_weights([worker["accelerated"] for worker in found])


def test_the_profiler_of_several_workers(two_workers):
    chief, other = two_workers("accelerated")
    summary = chief["summary"]
    assert summary["replicas"] == 2
    assert summary["samples_per_sec"] == pytest.approx(16 * summary["batches_per_sec"])
    assert summary["one_replica_step_ms"] > 0
    # Steps of so small a model may wait for their input, which says nothing of the replicas.
    assert (summary["scaling_efficiency"] is None) == summary["input_bound"]
    assert summary["speedup"] is None  # workers would have to agree on each own step
    assert (chief["files"], other["files"]) == (["profile.jsonl"], [])


def test_reductions(two_workers):
    chief, other = two_workers("reductions")
    for worker in (chief, other):
        assert worker["sum"] == {"a": 3.0, "b": [1.0, 4.0]}
        assert worker["scalar"] == 1.5
        assert worker["vector"] == [0.5, 2.0]
        assert worker["bytes"] == [1, 2, 3, 4, 0]
        assert worker["nothing"] == []
        assert worker["replicas"] == 2
    assert (chief["first"]["b"], other["first"]["b"]) == ([0.0, 2.0], [1.0, 2.0])
    assert (chief["unequal"], other["unequal"]) == ([5.0, 5.0], [6.0, 6.0, 6.0])
    assert (chief["chief"], other["chief"]) == (True, False)
    assert other["reason"] == "TF_CONFIG names 2 workers; this is worker 1"


@pytest.mark.slow
def test_three_workers_of_slurm(tmp_path):
    """Also last batches of 4 and of 2 samples, for three workers."""
    scenarios = ("seeded", "shuffled", "thirds")
    launch.run(launch.slurm(3), launch.HERE / "scenarios.py", tmp_path, *scenarios)
    found = results(tmp_path, 3, "thirds")
    model = models.cnn(synchronized=True)
    reference = models.train_cnn(model, batch_size=15)
    for worker in found:
        assert worker["reason"].startswith("Slurm names 3 workers")
        assert_same_losses(worker["even"], reference)
        for name in ("4", "2"):
            assert np.isfinite(worker[name]["history"]["loss"]).all()
    for name in ("4", "2"):
        assert_same_weights([worker[name] for worker in found])
    tf.random.set_seed(20261120)
    expected = [int(n) for n in tf.data.Dataset.range(9).shuffle(9)]
    for worker in results(tmp_path, 3, "seeded"):
        assert worker["numbers"] == expected
    seen = [number for worker in results(tmp_path, 3, "shuffled") for number in worker["seen"]]
    assert sorted(seen) == list(range(48))


@pytest.mark.slow
def test_a_worker_called_chief(tmp_path):
    scenarios = ("reductions", "shuffled", "unequal_workers")
    cluster = launch.tf_config(2, chief=True)
    launch.run(cluster, launch.HERE / "scenarios.py", tmp_path, *scenarios)
    chief, worker = results(tmp_path, 2, "reductions")
    assert (chief["chief"], worker["chief"]) == (True, False)
    assert (chief["reason"], worker["reason"]) == (
        "TF_CONFIG names 2 workers; this is chief 0",
        "TF_CONFIG names 2 workers; this is worker 0",
    )
    assert worker["bytes"] == chief["bytes"] == [1, 2, 3, 4, 0]
    first, second = results(tmp_path, 2, "shuffled")
    assert sorted(first["seen"] + second["seen"]) == list(range(48))
    assert_same_weights(results(tmp_path, 2, "unequal_workers"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_gives_the_others_an_error(tmp_path, victim):
    with launch.Workers(launch.tf_config(2), launch.HERE / "dying.py", tmp_path, victim) as workers:
        statuses = workers.wait(240)
        said = workers.said()
    survivor = 1 - victim
    assert statuses[victim] == -9, said
    assert statuses[survivor] == 3, said
    found = json.loads((tmp_path / f"survivor-{survivor}.json").read_text())
    died = float((tmp_path / "died").read_text())
    assert found["error"] == "UnavailableError"
    assert found["time"] - died < 60  # it takes about 10 s


@pytest.mark.slow
def test_gradients_in_bfloat16(tmp_path, one_process):
    launch.run(launch.tf_config(2), launch.HERE / "scenarios.py", tmp_path, "compressed")
    found = results(tmp_path, 2, "compressed")
    assert_same_weights(found)
    for worker in found:
        for variable in range(2):
            parts = [np.array(one["own"][variable], "float32") for one in found]
            rounded = [tf.cast(tf.cast(part, tf.bfloat16), tf.float32).numpy() for part in parts]
            np.testing.assert_array_equal(worker["gathered"][variable], sum(rounded))
            bound = 2**-8 * sum(np.abs(part) for part in parts)
            off = np.abs(np.array(worker["gathered"][variable]) - sum(parts))
            assert (off <= bound * (1 + 1e-6)).all()
            once_more = tf.cast(tf.cast(sum(rounded), tf.bfloat16), tf.float32).numpy()
            np.testing.assert_array_equal(worker["scattered"][variable], once_more)
            np.testing.assert_allclose(worker["reduced"][variable], sum(parts), rtol=2**-7 * 1.01)
        for name in ("loss", "val_loss"):
            np.testing.assert_allclose(worker["history"][name], one_process[1][name], rtol=5e-3)
        assert worker["history"]["loss"] != one_process[1]["loss"]


def launched(out, *flags, words=()):
    """What two workers of `tfaccel run` found, and what was printed."""
    out.mkdir()
    command = [sys.executable, "-m", "tfaccel", "run", "--workers=2", "--tuning=off", *flags]
    done = subprocess.run(
        [*command, str(launch.HERE / "launched.py"), str(out), *words],
        env={**os.environ, "PYTHONPATH": str(launch.ROOT)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return results(out, 2, "launched"), done.stdout, done.stderr


@pytest.mark.slow
def test_launched_workers_train_as_one_process(tmp_path, one_process):
    """Then one of them is killed in its second epoch: the end is the same."""
    whole, out, error = launched(tmp_path / "whole")
    for worker in whole:
        assert_same_losses(worker["history"], one_process[1])
    assert_same_weights(whole)
    assert sorted(out.splitlines()) == ["[0] trained 0", "[1] trained 1"]
    assert "[0]  Sequential" in error and "[1]  Sequential" not in error  # the closing table

    backup = tmp_path / "backup"
    flags = ("--max_restarts=1", f"--backup_dir={backup}")
    resumed, _, error = launched(tmp_path / "resumed", *flags, words=["1"])
    assert "worker 1 was ended by SIGKILL; all are started again (1 of 1)" in error
    assert not backup.exists()
    for worker, other in zip(resumed, whole, strict=True):
        assert worker["epochs"] == [1, 2]
        assert worker["history"]["loss"] == other["history"]["loss"][1:]
        assert worker["more"] == other["more"]
        assert worker["weights"] == other["weights"]


@pytest.mark.slow
def test_the_tensorflow_tutorial(tmp_path):
    """`Multi-worker training with Keras`, with its one line about the strategy changed."""
    launch.run(launch.tf_config(2), launch.HERE / "tutorial" / "main.py")
