"""Fits of programs that fork and of workers that they start."""

import contextlib
import multiprocessing
import os
import runpy
from multiprocessing import process

import keras
import pytest
from probes import X, Y, fit, make
from programs_run import PROGRAM
from test_run import RUN, ended

from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.launch import spawned
from tfaccel.launch.closing import closing, rows
from tfaccel.launch.start import Options, Watch


@pytest.mark.parametrize(
    ("fits", "expected"),
    [
        ([fit()], [("Sequential, 1,234 parameters", "1", "10", "xla", "1.25x", "0.5 s")]),
        (
            [fit(), fit(speedup=1.5, steps=2000), fit(speedup=None)],
            [("Sequential, 1,234 parameters", "3", "2,020", "xla", "1.38x [1.25-1.50]", "1.5 s")],
        ),
        (
            [fit(plan="baseline", speedup=None, parameters=None), fit(steps=None)],
            [
                ("Sequential", "1", "10", "baseline", "", "0.5 s"),
                ("Sequential, 1,234 parameters", "1", "", "xla", "1.25x", "0.5 s"),
            ],
        ),
        (
            [fit(raised="KeyboardInterrupt")],
            [
                (
                    "Sequential, 1,234 parameters (KeyboardInterrupt)",
                    *("1", "10", "xla", "1.25x", "0.5 s"),
                )
            ],
        ),
        ([], []),
    ],
)
def test_fits_of_a_kind_share_a_row(fits, expected):
    assert rows(fits) == expected


def test_each_reason_is_told_once():
    fits = [fit(note="old"), fit(note="too short"), fit(model="Other", note="too short")]
    said = [str(line) for line in closing(fits, ["X=1 was set."]).renderables[1:]]
    assert said == ["tfaccel: too short", "tfaccel: X=1 was set."]


def test_a_program_that_forks_has_one_table(monkeypatch, capsys):
    watch = Watch(Options(), {"A": "1"})
    with contextlib.ExitStack() as patches:
        watch.patches = patches
        watch.begin(keras)
        make().fit(X, Y, verbose=0)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    watch.end()
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    watch.end()
    out, err = capsys.readouterr()
    assert (out, "A=1 was set" in err, err.count("Sequential")) == ("", True, 1)


def test_a_program_trains_as_without(tmp_path, capsys):
    """Without it in this process, as TensorFlow takes longer to import than all of it."""
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    runpy.run_path(str(script))
    plain = capsys.readouterr().out
    environ = {"TF_ENABLE_ONEDNN_OPTS": str(int(onednn_is_on()))}
    status, out, said = ended([*RUN, str(script)], tmp_path, environ=environ)
    assert (status, out) == (0, plain), said
    row = next(line for line in said.splitlines() if "Sequential" in line)
    assert row.split()[:6] == ["Sequential,", "19", "parameters", "2", "16", "baseline"]


WORKER = """
import multiprocessing, sys
def trained(number):
    import keras, numpy as np
    from tfaccel.compat.keras_private import running_callbacks
    class Probe(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.names = [type(c).__name__ for c in running_callbacks(self.model)]
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    probe = Probe()
    model.fit(np.ones((8, 3)), np.ones((8, 1)), verbose=0, callbacks=[probe])
    return sorted(name for name in probe.names if name in ("AccelCallback", "ProfilerCallback"))
if __name__ == "__main__":
    with multiprocessing.get_context(sys.argv[1]).Pool(1) as pool:
        print(pool.map(trained, [1])[0])
"""


# What a process object is pickled with is tested below, which takes no import of TensorFlow.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_fits_of_workers_are_accelerated(method, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    words = [*RUN, "--profile=profiles", str(script), method]
    status, out, said = ended(words, tmp_path)
    assert (status, out) == (0, "['AccelCallback', 'ProfilerCallback']\n"), said
    (profile,) = (tmp_path / "profiles").glob("process-*/profile.jsonl")
    assert profile.stat().st_size
    assert said.count("tfaccel") == 0, said  # of workers nothing is told


def test_a_worker_that_can_t_begin_does_its_work(capsys):
    def fails(given):
        raise OSError("no fits today")

    process = spawned.unpickled(fails, None, complex, (1, 2))
    assert process == 1 + 2j
    assert "no fits today" in capsys.readouterr().err


def test_a_process_object_is_pickled_with_what_comes_first(monkeypatch):
    begun = []
    monkeypatch.setattr(spawned, "begun_in", [])
    monkeypatch.setattr(process.BaseProcess, "__reduce_ex__", process.BaseProcess.__reduce_ex__)
    spawned.first_in_workers(begun.append, "words")
    one = multiprocessing.get_context("spawn").Process(name="worker", target=print)
    make, words, *rest = one.__reduce_ex__(2)
    assert make is spawned.unpickled and rest[0]["_name"] == "worker"
    assert isinstance(make(*words), type(one)) and begun == []  # this process began it
    monkeypatch.setattr(spawned, "begun_in", [])
    make(*words)
    assert begun == ["words"]
    monkeypatch.setattr(spawned, "is_found", lambda: False)
    assert one.__reduce_ex__(2)[0] is not spawned.unpickled
