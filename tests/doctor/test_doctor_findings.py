"""A diagnosis and its three forms; the command."""

import dataclasses
import io
import json

import keras
import numpy as np
import pytest
import rich.console
from machines import NOTE, OK, PROBLEM, WARNING, assert_finding

from tfaccel.cli import main
from tfaccel.cli.doctor import command
from tfaccel.cli.doctor._finding import Diagnosis, Finding
from tfaccel.cli.doctor._surroundings import Surroundings


@pytest.mark.parametrize(
    ("level", "remedy"), [(OK, "do"), (NOTE, ""), (WARNING, ""), (PROBLEM, "")]
)
def test_whatever_is_not_well_has_a_remedy(level, remedy):
    with pytest.raises(ValueError, match="`remedy` must be given"):
        Finding("area", "found", level, remedy)


DIAGNOSIS = Diagnosis(
    (
        Finding("CPU", "a [chip] | 2 cores"),
        Finding("disk", "little room", NOTE, "tidy up"),
        Finding("disk", "less room", NOTE, "tidy up"),
        Finding("GPU", "unseen", PROBLEM, "pip install 'tfaccel[gpu]'"),
    ),
    {"cpu": "a chip"},
)


def test_a_diagnosis_as_json():
    data = json.loads(DIAGNOSIS.to_json())
    assert data["findings"][3] == {
        "area": "GPU",
        "level": "problem",
        "found": "unseen",
        "remedy": "pip install 'tfaccel[gpu]'",
    }
    assert (data["schema"], data["machine"]) == (1, {"cpu": "a chip"})
    assert data["summary"] == "1 problem, 2 notes."


def test_a_diagnosis_as_markdown():
    lines = DIAGNOSIS.to_markdown().splitlines()
    assert lines[2] == "| CPU | ok | a [chip] \\| 2 cores |  |"
    assert lines[5] == "| GPU | problem | unseen | pip install 'tfaccel[gpu]' |"
    assert lines[-1] == "1 problem, 2 notes."


@pytest.mark.parametrize("width", [40, 140])
def test_a_diagnosis_as_a_table(width):
    console = rich.console.Console(width=width, record=True, file=io.StringIO())
    console.print(DIAGNOSIS)
    text = console.export_text()
    # Brackets are text and not markup.
    assert "a [chip] | 2 cores" in text
    assert "'tfaccel[gpu]'" in text
    assert all(len(line) <= width for line in text.splitlines())


@pytest.mark.parametrize(("count", "status"), [(3, 0), (4, 1)])
def test_a_problem_makes_the_exit_code(count, status):
    assert Diagnosis(DIAGNOSIS.findings[:count], {}).exit_code == status


def test_nothing_to_mend():
    assert Diagnosis(DIAGNOSIS.findings[:1], {}).summary() == "Nothing to mend."


def test_a_healthy_machine(surroundings):
    untimed = [one for one in command.CHECKS if one[0] != "products"]
    diagnosis = command.diagnose(surroundings(), untimed)
    assert {f.level for f in diagnosis.findings if f.area != "extras"} == {OK}
    assert diagnosis.machine["cpu"] == "Some Chip 9000"
    assert diagnosis.exit_code == 0


def test_a_check_that_fails_is_a_finding(surroundings):
    def breaks(here):
        yield Finding("area", "first")
        raise OSError("the disk\nis gone")

    def works(here):
        yield Finding("area", "last")

    diagnosis = command.diagnose(surroundings(), (("disk", breaks), ("area", works)))
    first, failed, last = diagnosis.findings
    assert (first.found, last.found) == ("first", "last")
    assert_finding(failed, WARNING, "could not be looked at: OSError: the disk is gone")
    assert failed.area == "disk"


def test_this_machine():
    """Nothing breaks off here, wherever here is; products are timed small, to be quick."""
    here = dataclasses.replace(Surroundings(), sizes={"CPU": 16, "GPU": 16})
    diagnosis = command.diagnose(here)
    assert not [f for f in diagnosis.findings if "could not be looked at" in f.found]
    areas = {finding.area for finding in diagnosis.findings}
    assert areas >= {"CPU", "memory", "disk", "threads", "GPU", "CUDA", "versions", "oneDNN"}


@pytest.fixture
def quick(monkeypatch, surroundings):
    """`tfaccel doctor` in surroundings of a test's choice."""

    def choose(*args, **said):
        monkeypatch.setattr(command, "Surroundings", lambda: surroundings(*args, **said))

    choose()
    return choose


def test_the_command_as_json(capsys, quick):
    assert main.main(["doctor", "--format=json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["machine"]["cpu"] == "Some Chip 9000"
    assert {"area", "level", "found", "remedy"} == set(data["findings"][0])


def test_the_command_as_markdown(capsys, quick):
    assert main.main(["doctor", "--format=markdown"]) == 0
    assert "| CPU | ok | Some Chip 9000" in capsys.readouterr().out


def test_the_command_as_a_table(capsys, quick):
    assert main.main(["doctor"]) == 0
    assert "Some Chip 9000" in capsys.readouterr().out


def test_the_command_exits_with_1_on_a_problem(capsys, quick):
    quick(versions={"Keras": "3.9.0"})
    assert main.main(["doctor"]) == 1
    assert "keras>=3.10" in capsys.readouterr().out


def test_the_command_takes_no_arguments(capsys, quick):
    assert main.main(["doctor", "model.keras"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "unrecognized arguments: model.keras" in err


def test_nothing_is_left_behind(surroundings, tmp_path):
    here = surroundings()
    before = sorted(tmp_path.rglob("*")), np.random.get_state()[1].tolist()
    policy = keras.config.dtype_policy()
    command.diagnose(here)
    assert (sorted(tmp_path.rglob("*")), np.random.get_state()[1].tolist()) == before
    assert keras.config.dtype_policy() is policy
