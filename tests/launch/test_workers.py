"""`tfaccel run --workers`: processes, their places, prints, ends and new starts. No TensorFlow."""

import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from launching import FAILS_AT_FIRST
from test_run import ROOT, RUN, ended

from tfaccel.cli import _run_workers, main
from tfaccel.launch.program import Program
from tfaccel.launch.start import Options
from tfaccel.launch.workers import binding, cluster, crew, kept_fits

TWO = (*RUN, "--workers=2")


@pytest.fixture
def program(tmp_path):
    """Writes a script; gives what runs words before and after it."""

    def write(code):
        (tmp_path / "script.py").write_text(code)
        return functools.partial(_ran, tmp_path)

    return write


def _ran(folder, *flags, words=(), environ=()):
    return ended([*RUN, *flags, "script.py", *words], folder, environ=environ)


def by_worker(text, count=2):
    """The lines of each worker; all others must be the launcher's."""
    lines = text.splitlines()
    prefixes = tuple(f"[{index}] " for index in range(count))
    assert all(line.startswith((*prefixes, "tfaccel run: ")) for line in lines), text
    return [[line[len(p) :] for line in lines if line.startswith(p)] for p in prefixes]


# What workers find


def test_each_worker_is_told_its_place(program):
    run = program("import os, sys; print(os.environ['TF_CONFIG'], sys.argv[1:], sys.stdin.read())")
    status, out, _ = run("--workers=3", words=["--lr", "a b"])
    assert status == 0
    told = []
    for (line,) in by_worker(out, 3):
        config, _, rest = line.partition(" ['")
        assert rest == "--lr', 'a b'] "
        told.append(json.loads(config))
    assert [one["task"] for one in told] == [{"type": "worker", "index": i} for i in range(3)]
    addresses = told[0]["cluster"]["worker"]
    assert len(set(addresses)) == 3
    assert all(one["cluster"] == told[0]["cluster"] for one in told)
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_one_worker_is_no_cluster(program):
    status, out, _ = program("import os; print('TF_CONFIG' in os.environ)")("--workers=1")
    assert (status, out) == (0, "[0] False\n")


def test_modules_and_options_reach_the_worker():
    options = Options(
        tuning="off", profile="p", backup_dir="b", save_freq=3, verbose=True, on_batch=True
    )
    words = _run_workers.words_of(Program("package.train", ("--lr", "1"), True), options)
    assert words == [
        sys.executable,
        *RUN,
        "--launched",
        "--tuning=off",
        "--profile=p",
        "--backup_dir=b",
        "--save_freq=3",
        "--verbose",
        "--on_batch",
        "-m",
        "package.train",
        "--lr",
        "1",
    ]


def test_lines_are_whole_and_streams_apart(program):
    run = program(
        "import sys, time\n"
        "for i in range(100):\n"
        "    sys.stdout.write('out' * 99)\n"
        "    sys.stderr.write('err' * 99)\n"
        "    sys.stdout.write(f'{i}\\n'); sys.stderr.write(f'{i}\\n')\n"
        "sys.stdout.write('no end')\n"
    )
    status, out, error = run("--workers=2")
    assert status == 0
    for stream, word in ((out, "out"), (error, "err")):
        for lines in by_worker(stream):
            assert lines[:100] == [f"{word * 99}{i}" for i in range(100)]
            assert len(lines) == (101 if word == "out" else 100)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system binds no cores")
@pytest.mark.skipif(len(binding.allowed_cores()) < 2, reason="needs two cores")
def test_workers_have_cores_of_their_own(program):
    run = program("import os; print(sorted(os.sched_getaffinity(0)))")
    first, second = ({*json.loads(found[0])} for found in by_worker(run("--workers=2")[1]))
    assert first and second and not first & second
    assert first | second == binding.allowed_cores()
    _, out, _ = run("--workers=2", "--bind=none")
    assert all(json.loads(found[0]) == sorted(first | second) for found in by_worker(out))


# How they end


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [
        ("sys.exit(7)", 7, "worker 1 ended with exit status 7"),
        ("os.kill(os.getpid(), 9)", 137, "worker 1 was ended by SIGKILL"),
        ("1 / 0", 1, "worker 1 ended with exit status 1"),
    ],
)
def test_the_first_that_fails_ends_all(program, ends, status, said):
    run = program(
        "import json, os, sys, time\n"
        "index = json.loads(os.environ['TF_CONFIG'])['task']['index']\n"
        f"if index == 1: {ends}\n"
        "time.sleep(100)\n"
    )
    begun = time.monotonic()
    found, _, error = run("--workers=3", "--bind=none")
    assert time.monotonic() - begun < 15
    assert found == status
    assert [line for line in error.splitlines() if line.startswith("tfaccel run")] == [
        f"tfaccel run: {said}; all were ended"
    ]


STUBBORN = """
import json, os, signal, subprocess, sys, time
index = json.loads(os.environ['TF_CONFIG'])['task']['index']
if index == 0:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])
    open('pids', 'w').write(f'{os.getpid()} {child.pid}')
    open('ready', 'w').close()
while not os.path.exists('ready'): time.sleep(0.01)
if index == 1: sys.exit(4)
time.sleep(100)
"""


def test_who_does_not_end_is_killed_with_what_it_began(tmp_path, monkeypatch):
    (tmp_path / "script.py").write_text(STUBBORN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(crew, "GRACE_SECONDS", 0.3)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main.main(["run", "--workers=2", "script.py"]) == 4
    assert not any(map(is_alive, map(int, (tmp_path / "pids").read_text().split())))
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def is_alive(pid):
    try:
        state = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"  # its parent is gone, and who inherits it takes a moment


WAITS = (
    "import os, sys, time\n"
    "try:\n"
    "    print(os.getpid(), flush=True)\n"
    "    time.sleep(100)\n"
    "except KeyboardInterrupt:\n"
    "    print('interrupted')\n"
)


def begun(folder, code, number):
    """A launcher of two workers, which have begun, and their process numbers."""
    (folder / "script.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, *TWO, "--max_restarts=3", "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    return process, [int(process.stdout.readline().split()[1]) for _ in range(2)]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_and_none_is_started_again(tmp_path, number, status):
    process, pids = begun(tmp_path, WAITS, number)
    process.send_signal(number)
    out, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert said == f"tfaccel run: {signal.Signals(number).name} was received; all were ended\n"
    assert out.count("interrupted") == (2 if number == signal.SIGINT else 0)
    assert not any(map(is_alive, pids))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux kills them")
def test_workers_do_not_outlive_their_launcher(tmp_path):
    process, pids = begun(tmp_path, WAITS, signal.SIGTERM)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(("failures", "status", "starts"), [(2, 0, 3), (3, 13, 3)])
def test_all_are_started_again(program, tmp_path, failures, status, starts):
    found, out, error = program(FAILS_AT_FIRST)(
        "--workers=2", "--max_restarts=2", words=[str(failures)]
    )
    assert (found, out.count("done")) == (status, 0 if status else 2)
    assert [len((tmp_path / f"starts-{i}").read_text()) for i in range(2)] == [starts] * 2
    said = [line for line in error.splitlines() if line.startswith("tfaccel run: ")]
    assert said[:2] == [
        f"tfaccel run: worker 1 ended with exit status {10 + n}; all are started again ({n} of 2)"
        for n in (1, 2)
    ]
    assert len(said) == (2 if not status else 3)


def test_backups_go_when_all_is_done(program, tmp_path):
    run = program("import sys; sys.exit(int(sys.argv[1]))")
    for flags in (["--workers=2"], ["--max_restarts=1"], []):
        kept = kept_fits.kept_at(tmp_path / "kept", 0)
        kept.parent.mkdir()
        kept.write_text("")
        assert run(*flags, "--backup_dir=kept", words=["3"])[0] == 3
        assert kept.exists()
        assert run(*flags, "--backup_dir=kept", words=["0"])[0] == 0
        assert not kept.parent.exists()


# Others that start workers


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"TF_CONFIG": '{"cluster": {}}'}, "TF_CONFIG is set"),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "4"}, "task 1 of the 4"),
        ({"RAY_JOB_ID": "01000000"}, "Ray"),
    ],
)
def test_what_others_set_is_left_to_them(program, environ, said):
    status, out, error = program("print('one')")("--workers=3", environ=environ)
    assert (status, out) == (0, "one\n")
    assert said in error and "no worker is started" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "environ", [{}, {"TF_CONFIG": " "}, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}]
)
def test_nobody_else_starts_workers(environ):
    assert cluster.manager(environ) == ""


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, True),
        ({"TF_CONFIG": cluster.tf_config(["a:1", "b:1"], 0)}, True),
        ({"TF_CONFIG": cluster.tf_config(["a:1", "b:1"], 1)}, False),
        ({"TF_CONFIG": cluster.tf_config(["a:1"], 0)}, True),
        (
            {
                "TF_CONFIG": '{"cluster": {"chief": ["a:1"], "worker": ["b:1"]},'
                '"task": {"type": "worker", "index": 0}}'
            },
            False,
        ),
        ({"TF_CONFIG": "no JSON"}, True),
        ({"TF_CONFIG": "[]"}, True),
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, False),
        ({"SLURM_PROCID": "1"}, True),
    ],
)
def test_one_of_the_workers_prints(environ, expected):
    assert cluster.is_first(environ) is expected
    config = environ.get("TF_CONFIG", "")
    assert cluster.names_several(environ) is ("b:1" in config)
