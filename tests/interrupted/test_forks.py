"""Programs that fork have with tfaccel what they have without it."""

import os
import pathlib
import subprocess
import sys

import forking
import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no system but Unix forks")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["import", "midst", "after"])
def test_a_program_that_forks(kind):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, forking.__file__, kind]
    done = subprocess.run(
        words, env=environ, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    # A forked process says nothing of its parent's.
    assert "tfaccel" not in done.stdout + done.stderr
