"""`tfaccel run --sweep`: settings in turns, each turn a process."""

import io
import json
import os
import pathlib

import keras
import numpy as np
import pytest
import rich.console
from clocks import FakeClock
from programs_run import PROGRAM
from test_run import ROOT, RUN, ended

from tfaccel.launch.program import Program
from tfaccel.launch.start import Options
from tfaccel.launch.sweep import steps
from tfaccel.launch.sweep.child import Children, words_of
from tfaccel.launch.sweep.race import Sweep, Tried, TurnError, race
from tfaccel.launch.sweep.result import Swept
from tfaccel.launch.sweep.settings import AS_IT_IS, Setting

ONEDNN = (Setting("oneDNN on", {"D": "1"}),)
THREADS = (Setting("1 thread", {"T": "1"}), Setting("2 threads", {"T": "2"}))
ALLOCATOR = (Setting("jemalloc", {"A": "j"}),)


class Machine:
    """Runs turns by a table: the milliseconds of each, by the variables in force.

    A step of the last turn in a list is given once more where there are further ones.
    """

    def __init__(self, clock, steps, turn_seconds=10.0):
        self.clock = clock
        self.steps = {frozenset(environ.items()): list(times) for environ, times in steps}
        self.turn_seconds = turn_seconds
        self.turns = []
        self.limits = []

    def __call__(self, setting, seconds):
        self.turns.append(setting.environ)
        self.limits.append(seconds)
        self.clock.advance(self.turn_seconds)
        times = self.steps[frozenset(setting.environ.items())]
        found = times.pop(0) if len(times) > 1 else times[0]
        if isinstance(found, str):
            raise TurnError(found)
        return found / 1e3


def raced(clock, steps, *groups, max_seconds=1000.0):
    machine = Machine(clock, steps)
    return race(groups, machine, clock=clock, max_seconds=max_seconds), machine


def verdicts(found):
    return [(tried.setting.name, tried.verdict) for tried in found.tried]


def test_sides_take_turns_and_the_winner_goes_on(clock):
    found, machine = raced(
        clock,
        [
            ({}, [100, 110]),
            ({"D": "1"}, [60, 62, 61, 61]),
            ({"D": "1", "T": "1"}, [50, 51]),
            ({"D": "1", "T": "2"}, [55, 56]),
            ({"D": "1", "T": "1", "A": "j"}, [70, 71]),
        ],
        *(ONEDNN, THREADS, ALLOCATOR),
    )
    assert machine.turns[:8] == [{}, {"D": "1"}] * 4  # two turns each, and two that confirm
    assert found.best.environ == {"D": "1", "T": "1"}
    assert verdicts(found) == [
        *[("as it is", ""), ("oneDNN on", "kept")],
        *[("oneDNN on", ""), ("1 thread", "kept"), ("2 threads", "faster, but not the fastest")],
        *[("1 thread", "kept"), ("jemalloc", "slower")],
    ]
    assert found.tried[1].step_seconds == (0.06, 0.062, 0.061, 0.061)
    assert (found.tried[1].against, found.tried[1].median) == pytest.approx((0.11, 0.061))


@pytest.mark.parametrize(
    ("other", "verdict"),
    [
        ([90, 105], "no clear difference"),  # one of its turns is no faster
        ([99, 99], "no clear difference"),  # faster, by too little
        ([120, 130], "slower"),
        ([80, "it crashed"], "it crashed"),
        ([80, 80, "it crashed"], "it crashed"),
        ([80, 80, 80, 110], "no clear difference"),  # it had been faster by chance
        (["it crashed"], "it crashed"),
    ],
)
def test_what_is_not_clearly_faster_is_not_kept(clock, other, verdict):
    found, _ = raced(clock, [({}, [100, 100]), ({"D": "1"}, other)], ONEDNN)
    assert found.best == AS_IT_IS
    assert verdicts(found) == [("as it is", "kept"), ("oneDNN on", verdict)]


def test_a_program_that_can_t_be_timed_ends_the_sweep(clock):
    with pytest.raises(TurnError, match="no fit"):
        raced(clock, [({}, ["no fit"])], ONEDNN)


def test_a_turn_that_fails_later_leaves_what_was_found(clock):
    steps = [({}, [100]), ({"D": "1"}, [60, 60, 60, 60, "gone"])]
    found, _ = raced(clock, steps, ONEDNN, ALLOCATOR)
    assert (found.best.environ, found.left_out) == ({"D": "1"}, ("jemalloc",))


def test_a_turn_may_take_so_much_longer_than_the_first(clock):
    _, machine = raced(clock, [({}, [100]), ({"D": "1"}, [100])], ONEDNN, max_seconds=500.0)
    assert machine.limits == [500.0, 40.0, 40.0, 40.0]


def test_what_there_is_no_time_for_is_left_out(clock):
    steps = [({}, [100]), ({"D": "1"}, [100]), ({"T": "1"}, [100]), ({"A": "j"}, [90])]
    steps.append(({"T": "2"}, [100]))
    found, _ = raced(clock, steps, ONEDNN, THREADS, ALLOCATOR, max_seconds=130.0)
    assert found.left_out == ("1 thread", "2 threads")
    assert found.best.environ == {"A": "j"}


def watched(calls, step_seconds):
    """What the watch tells of fits with so many calls."""
    told, clock = [], FakeClock()
    watch = steps.StepWatch(told.append, clock)
    for count in calls:
        watch.on_train_begin()
        for index in range(count):
            clock.advance(step_seconds(index))
            watch.on_train_batch_end(index)
            if told:
                return told, index + 1
        watch.on_train_end()
        if told:
            return told, count
    return told, None


@pytest.mark.parametrize(
    ("calls", "step_seconds", "told", "after"),
    [
        ([100], lambda i: 30.0 if i < 3 else 0.125, 0.125, 23),
        ([100], lambda i: 4.0, 4.0, 6),  # ten seconds are enough
        ([100], lambda i: 20.0, 20.0, 6),  # three calls are wanted in any case
        ([10], lambda i: 0.25 if i % 2 else 0.5, 0.25, 10),
        ([5, 5, 7], lambda i: 1.0, 1.0, 7),
        ([5, 5], lambda i: 1.0, None, None),
    ],
)
def test_steps_are_timed_after_the_first(calls, step_seconds, told, after):
    found, at = watched(calls, step_seconds)
    assert (found, at) == ([] if told is None else [told], after)


@pytest.mark.parametrize("compiles", [False, True])
def test_a_fit_is_timed_and_the_process_ends(tmp_path, monkeypatch, compiles):
    class Ended(BaseException):
        pass

    def end(status):
        raise Ended(status)

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(steps, "CALLS", 3)
    path = tmp_path / "steps.json"
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=compiles)
    beside = steps.fits(Options(measure_into=str(path))).begin(model, [])
    with pytest.raises(Ended):
        model.fit(np.ones((64, 3)), np.ones((64, 1)), 4, verbose=0, callbacks=beside.callbacks)
    told = json.loads(path.read_text())
    assert told["step_seconds"] > 0 and told["compiles"] is compiles
    assert model.optimizer.iterations.numpy() == 6


@pytest.mark.parametrize(
    ("code", "seconds", "said"),
    [
        ("print('nothing to train')", 60, "the program ended, and no `fit` had made enough steps"),
        ("import time; time.sleep(60)", 0.5, "no `fit` had made its first steps within 0 s"),
        ("1 / 0", 60, "script.py x ended with status 1: ZeroDivisionError: division by zero"),
        ("import os; os._exit(3)", 60, "ended with status 3: it printed nothing"),
    ],
)
def test_why_a_turn_tells_nothing(tmp_path, monkeypatch, code, seconds, said):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("script.py").write_text(code)
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with pytest.raises(TurnError) as raised:
        Children(Program("script.py", ("x",)), environ)(AS_IT_IS, seconds)
    assert said in str(raised.value)


def test_a_turn_leaves_no_process(tmp_path, monkeypatch):
    """Also what the program began goes: the pipe's other end is closed."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    code = "import subprocess; subprocess.Popen('exec sleep 60 > pipe', shell=True)"
    pathlib.Path("script.py").write_text(code)
    handle = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(TurnError):
        Children(Program("script.py"), {**os.environ, "PYTHONPATH": str(ROOT)})(AS_IT_IS, 60)
    os.set_blocking(handle, True)
    assert os.read(handle, 1) == b""
    os.close(handle)


def test_a_turn_s_words(tmp_path):
    words = words_of(Program("pkg.mod", ("--lr", "1"), is_module=True), tmp_path / "r")
    assert words[1:4] == ["-m", "tfaccel", "run"]
    assert words[4:] == [f"--measure_into={tmp_path / 'r'}", "-m", "pkg.mod", "--lr", "1"]


# The table


def test_the_result_in_all_forms():
    best = Setting("1 thread", {"T": "1", "LD_PRELOAD": "/a b.so"})
    tried = (
        Tried(AS_IT_IS, (0.1, 0.12), None, ""),
        Tried(best, (0.05, 0.06), 0.11, "kept"),
        Tried(Setting("2 threads", {"T": "2"}), (), None, "it crashed"),
    )
    swept = Swept(Sweep(best, tried, ("jemalloc",)), "/kept.json")
    assert "| 1 thread | 55.0 ms | 50.0 ms 60.0 ms | 2.00x | kept |" in swept.to_markdown()
    assert "| 2 threads |  |  |  | it crashed |" in swept.to_markdown()
    assert "T=1 LD_PRELOAD='/a b.so'" in swept.to_markdown()
    data = json.loads(swept.to_json())
    assert data["environ"] == dict(best.environ)
    assert [row["step_seconds"] for row in data["tried"]] == [[0.1, 0.12], [0.05, 0.06], []]
    assert (data["left_out"], data["kept"]) == (["jemalloc"], "/kept.json")
    console = rich.console.Console(width=100, file=io.StringIO())
    console.print(swept)
    assert "2.00x" in console.file.getvalue()
    assert "nothing to try" in Swept(Sweep(AS_IT_IS, ()), "").to_markdown()


@pytest.mark.slow
def test_a_whole_sweep(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM.replace("8, 2, 0", "2, 3, 0"))
    set_by_user = dict.fromkeys(("TF_NUM_INTEROP_THREADS", "TF_NUM_INTRAOP_THREADS"), "1")
    words = [*RUN, "--sweep", "--format=json", "program.py"]
    status, out, said = ended(words, tmp_path, environ={**set_by_user, "LD_PRELOAD": ""})
    assert status == 0, said
    data = json.loads(out)
    assert {len(row["step_seconds"]) for row in data["tried"]} <= {2, 4}  # four confirm a win
    assert pathlib.Path(data["kept"]).is_file()
