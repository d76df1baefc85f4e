"""Where plans are kept by a user who has no home folder, as some containers' users."""

import os
import pwd
import stat
import subprocess
import sys
import warnings

import pytest

from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan
from tfaccel.measure.timing import Speedup
from tfaccel.passes import FusedNorm
from tfaccel.system import cache_dir
from tfaccel.system.temporary_place import temporary_place

REPORT = Report(trials=(), plan=Plan((FusedNorm(),)), gain=Speedup(1.5, 1.4, 1.6, 6))


@pytest.fixture
def homeless(monkeypatch, tmp_path):
    def unknown(number):
        raise KeyError(number)

    for name in ("HOME", "XDG_CACHE_HOME", "TFACCEL_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(tmp_path)
    cache_dir.warn_of_no_home.cache_clear()
    temporary_place.cache_clear()
    return tmp_path


def test_plans_are_kept_for_the_process_and_it_is_said_once(homeless):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        cache = PlanCache()
        again = PlanCache()
    assert ["TFACCEL_CACHE_DIR" in str(warning.message) for warning in said] == [True]
    cache.save("k", REPORT)
    assert again.load("k") == REPORT
    assert os.listdir(homeless) == []
    assert stat.S_IMODE(os.stat(cache.directory).st_mode) == 0o700


def test_a_folder_that_is_named_is_used_and_nothing_is_said(homeless, monkeypatch):
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(homeless / "mine"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert PlanCache().directory == homeless / "mine"


def test_where_nothing_can_be_written_nothing_is_kept(homeless, monkeypatch):
    def full(**_):
        raise FileNotFoundError("no usable temporary directory")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.warns(UserWarning, match="TFACCEL_CACHE_DIR"):
        cache = PlanCache()
    with pytest.warns(UserWarning, match="could not keep the plan"):
        cache.save("k", REPORT)
    assert os.listdir(homeless) == []


def test_the_folder_goes_with_the_process():
    code = (
        "from tfaccel.system.temporary_place import temporary_place; import os;"
        "folder = temporary_place(); open(os.path.join(folder, 'f'), 'w').close(); print(folder)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() and not os.path.exists(done.stdout.strip())


@pytest.mark.parametrize("chosen", ["argument", "environment"])
def test_a_tilde_stands_for_the_home_folder(monkeypatch, tmp_path, chosen):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TFACCEL_CACHE_DIR", "~/mine")
    cache = PlanCache("~/mine") if chosen == "argument" else PlanCache()
    assert cache.directory == tmp_path / "mine"
