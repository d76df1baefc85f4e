"""The benchmarks of workers, with tiny sizes."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from workers import launch

pytestmark = pytest.mark.slow


def rows(script, out, *flags):
    """The rows that a benchmark has written; None where it says why it measures nothing."""
    command = [sys.executable, str(launch.ROOT / "benchmarks" / script), f"--output={out}", *flags]
    environ = {**os.environ, "PYTHONPATH": str(launch.ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    files = list(out.glob("*.json"))
    if not files:
        assert done.stdout.startswith("Nothing was measured: ")
        return None
    return json.loads(files[0].read_text())["rows"]


@pytest.mark.skipif(len(getattr(os, "sched_getaffinity", lambda _: "")(0)) < 2, reason="two cores")
@pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset")
def test_the_gain_of_workers(tmp_path):
    sizes = ("--blocks=3", "--block_steps=2", "--batch_size=4", "--image_size=8")
    found = rows("worker_gain.py", tmp_path, "--plan=fused_norm", *sizes)
    assert [row["workers"] for row in found] == [1, 2]
    assert {row["plan"] for row in found} == {"fused_norm"}
    assert all(row["gain"][0] > 0 for row in found)


def test_the_accuracy_of_gradients_in_16_bits(tmp_path):
    rng = np.random.default_rng(0)
    images = {f"x_{part}": rng.random((32, 8, 8, 3), "float32") for part in ("train", "test")}
    labels = {f"y_{part}": np.arange(32) % 2 for part in ("train", "test")}
    np.savez(tmp_path / "images.npz", **images, **labels)
    sizes = ("--seeds=1", "--epochs=1", "--batch_size=8")
    flags = (f"--data_file={tmp_path / 'images.npz'}", *sizes)
    found = rows("compressed_accuracy.py", tmp_path, *flags)
    assert [row["gradients"] for row in found] == ["float32", "bfloat16"]
    assert all(0 <= row["accuracy"] <= 1 for row in found)


def test_a_slow_link(tmp_path):
    """Without root it says so."""
    found = rows("slow_link.py", tmp_path, "--width=16", "--blocks=3", "--block_steps=1")
    if found is not None:
        assert found[0]["mbits"] == 1000
        assert found[0]["gain"][0] > 0
