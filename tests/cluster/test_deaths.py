"""A worker that is killed, at every point of a training: all start again, or all end."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from workers import launch

pytestmark = pytest.mark.slow

# All must have ended within that time, where each has a core: a worker is missed after 6 seconds,
# and ending a process that has loaded TensorFlow and Keras takes 1.3 s of a core.
MOST_SECONDS = 15.0
# The chief alone writes backups.
VICTIMS = {"start": 1, "trial": 1, "race": 0, "training": 1, "validation": 0, "checkpoint": 0}
# The epochs that are left when all have started again.
RESUMED = {
    "start": [0, 1, 2],
    "trial": [0, 1, 2],
    "race": [0, 1, 2],
    "training": [1, 2],
    "validation": [1, 2],
    "checkpoint": [1, 2],
}


def run(out, point, victim, *flags):
    """How `tfaccel run` ended; it must not take long."""
    command = [sys.executable, "-m", "tfaccel", "run", "--workers=2", *flags]
    words = [str(launch.HERE / "mortal.py"), str(out), point, str(victim)]
    return subprocess.run(
        [*command, *words],
        env={**os.environ, "PYTHONPATH": str(launch.ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def most_seconds():
    """More where others want the cores, too."""
    return MOST_SECONDS * max(1.0, os.getloadavg()[0] / os.cpu_count())


def results(out):
    return [json.loads((out / f"result-{index}.json").read_text()) for index in range(2)]


def launcher_lines(text):
    return [line for line in text.splitlines() if line.startswith("tfaccel run:")]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The training that nobody disturbs."""
    out = tmp_path_factory.mktemp("whole")
    done = run(out, "none", -1, f"--backup_dir={out / 'backup'}")
    assert done.returncode == 0, done.stderr[-4000:]
    found = results(out)
    assert found[0]["epochs"] == [0, 1, 2]
    assert "RACE" in found[0]["path"]
    return found


@pytest.mark.parametrize("point", VICTIMS)
def test_all_start_again_and_end_as_if_nothing_had_been(tmp_path, whole, point):
    flags = ("--max_restarts=1", f"--backup_dir={tmp_path / 'backup'}")
    done = run(tmp_path, point, VICTIMS[point], *flags)
    assert done.returncode == 0, done.stderr[-4000:]
    said = f"worker {VICTIMS[point]} was ended by SIGKILL; all are started again (1 of 1)"
    assert launcher_lines(done.stderr) == [f"tfaccel run: {said}"]
    died = float((tmp_path / "died").read_text())
    for index in range(2):
        starts = [float(line) for line in (tmp_path / f"starts-{index}").read_text().split()]
        # Who dies at its start may do so while the other still imports, and has not written.
        assert len(starts) == 2 or (point == "start" and index != VICTIMS[point])
        assert starts[-1] - died < most_seconds()  # when all had ended
    for worker, other in zip(results(tmp_path), whole, strict=True):
        assert worker["epochs"] == RESUMED[point]
        for name, values in worker["history"].items():
            assert values == other["history"][name][RESUMED[point][0] :], name
        assert worker["weights"] == other["weights"]
        assert worker["slots"] == other["slots"]


@pytest.mark.parametrize("point", ["start", "trial", "race"])
def test_without_restarts_all_end_with_one_error(tmp_path, point):
    done = run(tmp_path, point, 1)
    ended = time.time()
    assert done.returncode == 128 + 9
    said = "tfaccel run: worker 1 was ended by SIGKILL; all were ended"
    assert launcher_lines(done.stderr) == [said]
    assert ended - float((tmp_path / "died").read_text()) < most_seconds()
    assert not list(tmp_path.glob("result-*"))


@pytest.mark.parametrize("point", ["trial", "race"])
def test_without_a_launcher_the_others_end_with_an_error(tmp_path, point):
    """It is the step's, that waits for who is gone, and no word of a plan that failed."""
    script = launch.HERE / "mortal.py"
    with launch.Workers(launch.tf_config(2), script, tmp_path, point, 1) as workers:
        statuses = workers.wait(240)
        ended, said = time.time(), workers.said()
    assert np.array_equal(statuses, [1, -9]), said
    assert "UnavailableError" in said
    assert ended - float((tmp_path / "died").read_text()) < most_seconds()
