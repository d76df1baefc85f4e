"""Runs tests/two_devices in a process of its own, on two logical CPUs."""

import os
import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent / "two_devices"


def test_two_devices():
    environment = {**os.environ, "TFACCEL_TWO_DEVICES": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", str(FOLDER)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, cwd=FOLDER.parents[1]
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
