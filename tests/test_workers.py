"""`tfaccel run --workers`: processes, their places, prints, ends and new starts. No TensorFlow."""

import argparse
import functools
import json
import os
import pathlib
import queue
import random
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from test_run import ROOT, RUN, ended

from tfaccel.cli import _run_workers, main
from tfaccel.cli._status import EXIT_USAGE
from tfaccel.launch.program import Program
from tfaccel.launch.start import Options
from tfaccel.launch.workers import binding, cluster, crew, hosts, kept_fits, ports
from tfaccel.launch.workers.errors import LaunchError
from tfaccel.launch.workers.group import Alone, Machines
from tfaccel.launch.workers.request import Request

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


# New starts

FAILS_AT_FIRST = """
import json, os, sys, time
index = json.loads(os.environ['TF_CONFIG'])['task']['index']
def starts(of):
    return os.path.getsize(f'starts-{of}') if os.path.exists(f'starts-{of}') else 0
with open(f'starts-{index}', 'a') as file: file.write('x')
while starts(0) != starts(1): time.sleep(0.01)
if starts(index) <= int(sys.argv[1]):
    if index == 1: sys.exit(starts(index) + 10)
    time.sleep(100)
print('done')
"""


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


# Words


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--workers=0"], "must be a whole number from 1"),
        (["--max_restarts=-1"], "must be a whole number from 0"),
        (["--worker_index=1"], "--worker_index needs --rendezvous"),
        (["--save_freq=3"], "--save_freq needs --backup_dir"),
        (["--sweep", "--workers=2"], "--sweep measures one process"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, capsys, flags, said):
    (tmp_path / "script.py").write_text("")
    assert main.main(["run", *flags, str(tmp_path / "script.py")]) == EXIT_USAGE
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(rendezvous="a:1"), "needs --workers N"),
        (Request(rendezvous="a:1", workers=2, worker_index=2), "from 0 to 1. Received: 2"),
        (Request(rendezvous="a", workers=2, worker_index=1), "takes HOST:PORT"),
        (Request(rendezvous="a:99999", workers=2, worker_index=1), "takes HOST:PORT"),
        (Request(rendezvous="a:1", hosts="b"), "exclude each other"),
        (Request(hosts="/no/such/file"), "can't be read"),
    ],
)
def test_machines_that_can_not_be_found(request_, said):
    with pytest.raises(LaunchError, match=said):
        hosts.meeting(request_, {})


def test_kubernetes_numbers_the_machines():
    asked = Request(rendezvous="127.0.0.1:2", workers=3)
    group, workers, is_first = hosts.meeting(asked, {"JOB_COMPLETION_INDEX": "2"})
    assert isinstance(group, Machines)
    assert (workers, is_first) == (1, False)


def test_a_file_of_hosts(tmp_path):
    path = tmp_path / "hosts"
    path.write_text("# ours\n10.0.0.1:444 slots=2\n\nb # second\n")
    found = hosts.read(path)
    assert found == [hosts.Host("10.0.0.1", 2, 444), hosts.Host("b", 1, hosts.DEFAULT_PORT)]
    assert hosts.here(found, None, lambda name: name == "b") == 1
    assert hosts.here(found, 0) == 0
    for local in (lambda name: True, lambda name: False):
        with pytest.raises(LaunchError, match="say which by --worker_index"):
            hosts.here(found, None, local)
    for wrong in ("a slots=x", "a b", "a:b", "", "a slots=0"):
        path.write_text(wrong)
        with pytest.raises(LaunchError, match="--hosts"):
            hosts.read(path)


# Several machines


def test_machines_meet_fail_and_meet_again():
    (port,) = ports.free_ports(1)
    joined = functools.partial(Machines, "127.0.0.1", port, machines=2, patience_seconds=30)
    groups = [joined(machine=0, workers=2), joined(machine=1, address="second")]
    for again in range(2):
        events = [queue.SimpleQueue() for _ in groups]
        rounds = together(groups, events)
        assert rounds[0].addresses == rounds[1].addresses
        assert [a.split(":")[0] for a in rounds[0].addresses] == ["127.0.0.1"] * 2 + ["second"]
        assert [one.first for one in rounds] == [0, 2]
        if not again:
            groups[1].failed("worker 2 fell over")
            assert events[0].get(timeout=30) == ("stop", "worker 2 fell over")
            groups[0].failed("")
    groups[0].ended()
    assert events[1].empty()
    groups[1].ended()
    assert [one.get(timeout=30) for one in events] == [("all_ended",)] * 2
    for group in groups:
        group.close()


def together(groups, events):
    """The rounds that all of them join."""
    found = {}
    threads = [
        threading.Thread(target=lambda i=i: found.update({i: groups[i].join(events[i])}))
        for i in range(len(groups))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return [found[i] for i in range(len(groups))]


def test_machines_that_do_not_come_or_do_not_belong():
    (port,) = ports.free_ports(1)
    joined = functools.partial(Machines, "127.0.0.1", port)
    first = joined(machine=0, machines=2, patience_seconds=0.2)
    with pytest.raises(LaunchError, match="not all of 2 machines came"):
        first.join(queue.SimpleQueue())
    with pytest.raises(LaunchError, match="waits for 2, and this one was told of 3"):
        joined(machine=1, machines=3).join(queue.SimpleQueue())
    with pytest.raises(LaunchError, match=f"port {port} of the rendezvous can't be used"):
        joined(machine=0, machines=2)
    events = queue.SimpleQueue()
    events.put(("signal", 2))
    assert joined(machine=1, machines=2).join(events) is None
    first.close()


def test_two_launchers_of_one_training(tmp_path):
    """As on two machines: the failure of one's worker starts both again."""
    (port,) = ports.free_ports(1)
    (tmp_path / "script.py").write_text(FAILS_AT_FIRST)
    flags = [*RUN, "--workers=2", f"--rendezvous=127.0.0.1:{port}", "--max_restarts=1"]
    launchers = [
        subprocess.Popen(
            [sys.executable, *flags, f"--worker_index={index}", "script.py", "1"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (1, 0)
    ]
    said = [one.communicate(timeout=60) for one in launchers]
    assert [one.returncode for one in launchers] == [0, 0], said
    assert [out for out, _ in said] == ["[1] done\n", "[0] done\n"]
    for _, error in said:
        assert "worker 1 ended with exit status 11; all are started again (1 of 1)" in error


# Ports, cores, GPUs


def test_ports_that_are_taken_are_left_out():
    with socket.socket() as taken:
        taken.bind(("", random.Random(7).choice(ports._PORTS)))
        taken.listen()
        found = ports.free_ports(3, random.Random(7))
        assert len(set(found)) == 3
        assert taken.getsockname()[1] not in found


def machine(tmp_path, nodes, threads=1):
    """The kernel's tables of NUMA nodes with so many cores each."""
    cpus = sum(nodes)
    first = 0
    for node, size in enumerate(nodes):
        folder = tmp_path / f"node/node{node}"
        folder.mkdir(parents=True)
        listed = [f"{first + t * cpus}-{first + t * cpus + size - 1}" for t in range(threads)]
        (folder / "cpulist").write_text(",".join(listed) + "\n")
        first += size
    for cpu in range(cpus * threads):
        folder = tmp_path / f"cpu/cpu{cpu}/topology"
        folder.mkdir(parents=True)
        siblings = ",".join(str(cpu % cpus + t * cpus) for t in range(threads))
        (folder / "thread_siblings_list").write_text(siblings)
    return tmp_path, set(range(cpus * threads))


@pytest.mark.parametrize(
    ("nodes", "threads", "workers", "expected"),
    [
        ([4, 4], 1, 2, [{0, 1, 2, 3}, {4, 5, 6, 7}]),
        ([2, 2], 2, 2, [{0, 1, 4, 5}, {2, 3, 6, 7}]),
        ([2, 2], 2, 4, [{0, 4}, {1, 5}, {2, 6}, {3, 7}]),
        ([2], 2, 4, [{0}, {2}, {1}, {3}]),
        ([3], 1, 2, [{0}, {1, 2}]),
        ([1], 1, 2, []),
    ],
)
def test_shares_of_cores(tmp_path, nodes, threads, workers, expected):
    system, allowed = machine(tmp_path, nodes, threads)
    assert binding.shares_of_cores(allowed, workers, system) == expected


def test_shares_of_cores_without_tables(tmp_path):
    assert binding.shares_of_cores({3, 5, 8}, 3, tmp_path) == [{3}, {5}, {8}]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, ["0", "1", "2"]),
        ({"CUDA_VISIBLE_DEVICES": ""}, []),
        ({"CUDA_VISIBLE_DEVICES": "2, GPU-1,-1,0"}, ["2", "GPU-1"]),
    ],
)
def test_the_gpus_of_a_machine(tmp_path, environ, expected):
    for name in "abc":
        (tmp_path / name).mkdir()
    assert binding.gpus(environ, tmp_path) == expected
    assert binding.gpus({}, tmp_path / "none") == []


def test_shares_of_gpus():
    assert binding.shares_of_gpus([], 2) == []
    assert binding.shares_of_gpus(["0", "1", "2", "3", "4"], 2) == ["0,1", "2,3"]
    with pytest.raises(LaunchError, match="Use --workers 1"):
        binding.shares_of_gpus(["0"], 2)


def test_a_group_of_one_machine_ends_by_itself():
    events = queue.SimpleQueue()
    alone = Alone(2)
    assert alone.join(events).first == 0
    alone.ended()
    assert events.get() == ("all_ended",)
    assert not Request().is_asked
    assert _run_workers.requested(
        argparse.Namespace(
            **{"workers": 2, "hosts": None, "rendezvous": None, "worker_index": None},
            **{"max_restarts": 0, "backup_dir": None, "bind": "none", "save_freq": None},
            sweep=False,
        )
    ) == Request(workers=2, bind=False)
