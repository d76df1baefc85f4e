"""Trainings at the same time that share a cache folder, one of which is killed while it writes."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest
import sharing

from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.autotune.portable import clear_cache, contents
from tfaccel.system.json_files import replace_text

pytestmark = pytest.mark.skipif(os.name != "posix", reason="such signals are Unix's")

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.slow
def test_trainings_share_a_cache_and_one_is_killed(tmp_path, recwarn):
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, sharing.__file__, str(tmp_path), "4"]
    running = [
        subprocess.Popen([*words, *more], env=environ, stderr=subprocess.PIPE, text=True)
        for more in ([], [], ["killed"])
    ]
    said = [process.communicate()[1] for process in running]
    statuses = [process.returncode for process in running]
    assert statuses == [0, 0, -signal.SIGKILL], said
    files = list(tmp_path.iterdir())
    assert [path.suffix for path in files].count(".tmp") == 1
    cache = PlanCache(tmp_path)
    assert all(cache.load(path.stem) is not None for path in tmp_path.glob("*.json"))
    assert not recwarn
    clear_cache(contents(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_left_is_cleared(tmp_path, monkeypatch):
    """And nothing else is: a folder may be of the user's."""
    (tmp_path / "notes.tmp").write_text("mine", encoding="utf-8")

    def killed(*_):
        raise SystemExit

    for folder in (tmp_path, tmp_path / "sweeps"):
        for name in ("a.json", "kernels-b.json"):
            replace_text(folder / name, "{}")
            with monkeypatch.context() as patched, pytest.raises(SystemExit):
                patched.setattr(os, "replace", killed)
                patched.setattr(pathlib.Path, "unlink", killed)
                replace_text(folder / name, "[]")
    assert len(list(tmp_path.rglob(".*.tmp"))) == 4
    found = clear_cache(contents(tmp_path))
    assert found >= 4 and not list(tmp_path.rglob(".*.tmp"))
    assert (tmp_path / "notes.tmp").exists() and (tmp_path / "a.json").exists()
