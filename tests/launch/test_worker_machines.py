"""Workers on several machines, their ports, cores and GPUs."""

import argparse
import functools
import os
import queue
import random
import socket
import subprocess
import sys
import threading

import pytest
from launching import FAILS_AT_FIRST
from test_run import ROOT, RUN

from tfaccel.cli import _run_workers, main
from tfaccel.cli._status import EXIT_USAGE
from tfaccel.launch.workers import binding, hosts, ports
from tfaccel.launch.workers.errors import LaunchError
from tfaccel.launch.workers.group import Alone, Machines
from tfaccel.launch.workers.request import Request


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
        taken.bind(("", random.Random(7).choice(ports.PORTS)))
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
