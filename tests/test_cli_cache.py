"""`tfaccel cache`: what was learned on one machine goes to another of its class."""

import json
import subprocess
import sys

import pytest
from command_line import call

from tfaccel import Outcome, Plan, Speedup
from tfaccel.autotune import portable
from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.cli._command import UsageError
from tfaccel.cli.cache import COMMAND
from tfaccel.ops.kernels import CallSpec, Candidate, Ranking, Store, kernels
from tfaccel.passes import FusedOptimizer
from tfaccel.system.cache_dir import compiled_directory


def ranking(rows):
    spec = CallSpec("matmul", "forward", "float32", (rows, 4), (4, 4))
    names = [kernel.name for kernel in kernels("matmul", "forward")]
    return Ranking(spec, tuple(Candidate(n, Outcome.BASELINE, seconds=1e-3) for n in names), True)


@pytest.fixture
def filled(tmp_path):
    folder = tmp_path / "here"
    plan = Plan((FusedOptimizer(),))
    trials = (
        Trial(Plan(), Outcome.BASELINE, step_seconds=0.2),
        Trial(plan, Outcome.FASTER, "", 1.0, 0.1, Speedup(2.0, 1.9, 2.1, 6)),
    )
    PlanCache(folder).save("abc", Report(trials, plan, Speedup(2.0, 1.9, 2.1, 6)))
    store = Store(folder)
    store.add(ranking(8))
    store.save()
    return folder


def run(folder, *words):
    return call(COMMAND, *words, "--cache_dir", folder)


def test_what_is_there_is_shown(filled):
    shown = run(filled, "show")
    data = json.loads(shown.to_json())
    assert [(p["plan"], p["speedup"], p["trials"]) for p in data["plans"]] == [
        ("fused_optimizer", "2.00x", "1")
    ]
    assert data["rankings"] == 1
    assert "fused_optimizer" in shown.to_markdown()


@pytest.mark.slow  # test_public_names.py has a process that begins by reading a plan
def test_plans_are_read_in_a_process_that_has_done_nothing_else(filled):
    words = ["-m", "tfaccel", "cache", "show", "--format=json", "--cache_dir", str(filled)]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    assert [plan["plan"] for plan in json.loads(done.stdout)["plans"]] == ["fused_optimizer"]


def test_an_empty_folder_is_shown(tmp_path):
    assert json.loads(run(tmp_path / "none", "show").to_json())["plans"] == []


def test_a_cache_travels_and_merges(filled, tmp_path):
    file, there = tmp_path / "cache.json", tmp_path / "there"
    run(filled, "export", file)
    PlanCache(there).save("other", Report((), Plan()))
    run(there, "import", file)
    found = portable.contents(there)
    assert sorted(found.plans) == ["abc.json", "other.json"]
    assert [one.spec for one in found.rankings] == [ranking(8).spec]
    assert PlanCache(there).load("abc").plan.names == ("fused_optimizer",)
    # Once more adds nothing, and changes nothing.
    assert "0 plans and times of 0 products" in run(there, "import", file).said


def test_what_is_there_already_stays(filled, tmp_path):
    file, there = tmp_path / "cache.json", tmp_path / "there"
    run(filled, "export", file)
    PlanCache(there).save("abc", Report((), Plan(), note="mine"))
    run(there, "import", file)
    assert PlanCache(there).load("abc").note == "mine"


def test_another_class_of_machine_is_refused(filled, tmp_path):
    file = tmp_path / "cache.json"
    run(filled, "export", file)
    data = json.loads(file.read_text())
    data["machine"]["cores"] += 1
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="another class of machine"):
        run(tmp_path / "there", "import", file)
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("name", ["../out.json", "a/b.json"])
def test_no_file_is_written_outside_the_folder(name, filled, tmp_path):
    file = tmp_path / "cache.json"
    run(filled, "export", file)
    data = json.loads(file.read_text())
    data["plans"][name] = data["plans"].pop("abc.json")
    file.write_text(json.dumps(data))
    with pytest.raises(UsageError, match="no name of a file"):
        run(tmp_path / "there", "import", file)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99}'])
def test_a_file_that_is_no_cache_is_told(text, tmp_path):
    file = tmp_path / "cache.json"
    file.write_text(text)
    with pytest.raises(UsageError):
        run(tmp_path / "there", "import", file)
    with pytest.raises(UsageError):
        run(tmp_path / "there", "import", tmp_path / "missing.json")


def test_clear_leaves_what_is_not_tfaccel_s(filled):
    (filled / "mine.json").write_text('{"my": 1}')
    (filled / "kernels-0123.json").write_text("{}")
    compiled = compiled_directory(filled) / "some_engine"
    compiled.mkdir(parents=True)
    (compiled / "model.blob").write_text("compiled")
    assert "2 plans" not in run(filled, "clear").said
    assert [path.name for path in filled.iterdir()] == ["mine.json"]


@pytest.mark.parametrize("words", [["export"], ["import"], ["show", "file"], ["clear", "file"]])
def test_wrong_words(words, tmp_path):
    with pytest.raises(UsageError, match="a file"):
        run(tmp_path, *words)
