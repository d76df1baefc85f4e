"""`tfaccel run --sweep`: settings in turns, each turn a process."""

import io
import json
import os
import pathlib
import platform

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from clocks import FakeClock
from test_every_fit import PROGRAM
from test_run import ROOT, RUN, ended

from tfaccel.autotune import portable
from tfaccel.launch import environment
from tfaccel.launch.program import Program
from tfaccel.launch.start import Options
from tfaccel.launch.sweep import kept, steps, sweep
from tfaccel.launch.sweep.child import Children, words_of
from tfaccel.launch.sweep.race import Sweep, Tried, TurnError, race
from tfaccel.launch.sweep.result import Swept
from tfaccel.launch.sweep.settings import AS_IT_IS, Setting, factors, xla_factors
from tfaccel.system import packages

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


# What is tried


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr(environment, "_machine", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")


def names(groups):
    return [[setting.name for setting in group] for group in groups]


@pytest.mark.parametrize(
    ("environ", "cores", "is_on", "expected"),
    [
        (
            {},
            4,
            True,
            [["oneDNN off"], ["2 threads within an op"], ["1 op at once", "2 ops at once"]],
        ),
        ({}, 1, False, [["oneDNN on"]]),
        ({"TF_ENABLE_ONEDNN_OPTS": "0", "TF_NUM_INTEROP_THREADS": "4"}, 2, False, None),
    ],
)
def test_what_is_worth_a_trial(x86, tmp_path, environ, cores, is_on, expected):
    found = factors(environ, cores=cores, root=tmp_path, is_onednn_on=is_on)
    assert names(found) == (expected or [["1 thread within an op"]])


def test_a_container_s_share_and_allocators(x86, tmp_path):
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("250000 100000")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    folder = tmp_path / "usr" / "lib" / "x86_64-linux-gnu"
    folder.mkdir(parents=True)
    for name in ("libjemalloc.so.2", "libtcmalloc.so.4", "libtcmalloc_minimal.so.4"):
        (folder / name).write_text("")
    _, threads, _, allocators = factors({}, cores=8, root=tmp_path, is_onednn_on=True)
    assert [setting.name for setting in threads] == [
        "4 threads within an op",
        "3 threads within an op",
    ]
    assert [setting.environ for setting in allocators] == [
        {"LD_PRELOAD": str(folder / "libjemalloc.so.2")},
        {"LD_PRELOAD": str(folder / "libtcmalloc_minimal.so.4")},
    ]
    assert len(factors({"LD_PRELOAD": ""}, cores=8, root=tmp_path, is_onednn_on=True)) == 3


def test_amd_s_plugin_is_tried_where_it_is_installed(x86, tmp_path):
    (onednn, _, _) = factors({}, cores=4, root=tmp_path, is_onednn_on=True, has_zendnn=True)
    assert onednn[1].environ == {"TF_ENABLE_ZENDNN_OPTS": "1", "TF_ENABLE_ONEDNN_OPTS": "0"}
    environ = {"TF_ENABLE_ONEDNN_OPTS": "1"}
    found = factors(environ, cores=1, root=tmp_path, is_onednn_on=True, has_zendnn=True)
    assert names(found) == []


@pytest.mark.parametrize(("flags", "count"), [("avx2", 2), ("avx2 avx512f", 3)])
def test_xla_s_flags(tmp_path, flags, count):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    ((*found,),) = xla_factors({}, tmp_path / "cpuinfo", "x86_64")
    assert len(found) == count
    assert {tuple(setting.environ) for setting in found} == {("XLA_FLAGS",)}
    assert xla_factors({"XLA_FLAGS": ""}, tmp_path / "cpuinfo", "x86_64") == []


@pytest.mark.parametrize(("compiles", "tried"), [(None, True), (True, True), (False, False)])
def test_xla_s_flags_are_tried_where_xla_compiles(monkeypatch, compiles, tried):
    children = Children(Program("a.py"), {})
    found = []
    for factor in sweep.factors_of(children, {}):
        children.compiles = compiles  # as its turns have told
        found += [name for setting in factor for name in setting.environ]
    assert ("XLA_FLAGS" in found) is tried


def test_no_onednn_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_machine", lambda: "aarch64")
    assert names(factors({}, cores=1, root=tmp_path, is_onednn_on=False)) == []


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ("avx2", {}, False),
        ("avx2", {"TF_ENABLE_ONEDNN_OPTS": "1"}, True),
        ("avx2 avx512_vnni", {}, True),
        ("avx2 avx512_vnni", {"TF_ENABLE_ONEDNN_OPTS": "0"}, False),
    ],
)
def test_whether_onednn_runs(tmp_path, flags, environ, expected):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert environment.takes_onednn(environ, tmp_path / "cpuinfo") is expected


# What is kept


def test_what_is_kept_is_for_one_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, module = Program("a.py"), Program("a", is_module=True)
    (tmp_path / "sub").mkdir()
    found = {"TF_NUM_INTEROP_THREADS": "1", "LD_PRELOAD": "/nowhere.so", "PATH": "/evil"}
    kept.keep(here, found)
    usable = {"TF_NUM_INTEROP_THREADS": "1"}
    assert kept.environ(here) == kept.environ(Program(str(tmp_path / "a.py"), ("x",))) == usable
    assert kept.environ(module) == kept.environ(Program("b.py")) == {}
    monkeypatch.chdir(tmp_path / "sub")
    assert kept.environ(here) == {}
    assert kept.environ(Program("../a.py")) == usable


def test_flags_are_kept_for_one_tensorflow(monkeypatch):
    kept.keep(Program("a.py"), {"TF_NUM_INTEROP_THREADS": "1", "XLA_FLAGS": "--f"})
    assert kept.environ(Program("a.py"))["XLA_FLAGS"] == "--f"
    monkeypatch.setattr(kept, "tensorflow_version", lambda: "9.9")
    assert kept.environ(Program("a.py")) == {"TF_NUM_INTEROP_THREADS": "1"}


def test_versions_are_told_without_an_import():
    assert packages.tensorflow_version() == tf.__version__
    assert packages.version_of("no-such-package") is None


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "environ": [1]}'])
def test_a_broken_file_is_no_file(tmp_path, text):
    path = kept.keep(Program("a.py"), {"TF_NUM_INTEROP_THREADS": "1"})
    path.write_text(text)
    assert kept.environ(Program("a.py")) == {}


def test_the_cache_forgets_it(tmp_path):
    kept.keep(Program("a.py"), {"TF_NUM_INTEROP_THREADS": "1"})
    assert portable.clear_cache(portable.contents()) == 1
    assert kept.environ(Program("a.py")) == {}


# A turn


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
