"""The steps of benchmarks/gpu_day.py, of which none may be lost to a mistake in a command."""

import dataclasses
import shlex

import _gpu_steps
import pytest


@pytest.mark.parametrize("name", _gpu_steps.STEPS)
@pytest.mark.parametrize("kind", ["command", "small"])
def test_a_step_s_command_is_whole(name, kind):
    step = _gpu_steps.STEPS[name]
    text = getattr(step, kind).format(output="out")
    first = shlex.split(text)[0]
    assert first in ("-m", "-c") or (_gpu_steps.REPOSITORY / first).is_file()
    assert 0 < step.minutes <= 10


def test_half_an_hour_has_room_for_what_is_worth_most():
    first = ("loading", "bring_up", "resnet50", "tests", "transformer", "resnet50_float32")
    assert tuple(_gpu_steps.STEPS)[: len(first)] == first
    assert sum(_gpu_steps.STEPS[name].minutes for name in first) < 30


def test_a_step_that_fails_or_hangs_is_told(tmp_path):
    quick = _gpu_steps.Step("-c 'print(1)'", 1, "")
    log = tmp_path / "log"
    assert _gpu_steps.run(quick, log, small=False) == "done"
    assert log.read_text() == "1\n"
    failing = dataclasses.replace(quick, command="-c 'raise SystemExit(3)'")
    assert _gpu_steps.run(failing, log, small=False) == "failed with status 3"
    hanging = dataclasses.replace(quick, command="-c 'import time; time.sleep(60)'", minutes=0.01)
    assert _gpu_steps.run(hanging, log, small=False) == "ended after 0.01 minutes"
