"""Starts worker processes on this machine, and ends what is left of them."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def tf_config(count, chief=False):
    """The environments of `count` workers by TF_CONFIG; the first may be called chief."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
    cluster = {"chief": hosts[:1], "worker": hosts[1:]} if chief else {"worker": hosts}
    tasks = [(kind, index) for kind in cluster for index in range(len(cluster[kind]))]
    for kind, index in tasks:
        task = {"type": kind, "index": index}
        yield {"TF_CONFIG": json.dumps({"cluster": cluster, "task": task})}


def slurm(count):
    """The environments that Slurm gives to the tasks of a step on one node."""
    for index in range(count):
        yield {
            # Ports follow from the job's number.
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_PROCID": str(index),
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_STEP_TASKS_PER_NODE": str(count),
        }


class Workers:
    """Processes that run one script, each with its environment; a context manager."""

    def __init__(self, environments, script, *arguments):
        command = [sys.executable, str(script), *map(str, arguments)]
        self.logs = []
        self.processes = []
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        for index, environment in enumerate(environments):
            log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by __exit__)
            self.logs.append(log)
            self.processes.append(
                subprocess.Popen(
                    command,
                    env={
                        **os.environ,
                        "PYTHONPATH": path,
                        "TEST_WORKER": str(index),
                        **environment,
                    },
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process, log in zip(self.processes, self.logs, strict=True):
            process.kill()
            process.wait()
            log.close()

    def wait(self, timeout_seconds):
        """The exit status of each; fails with what they printed if time runs out."""
        deadline = time.monotonic() + timeout_seconds
        try:
            return [p.wait(max(0.1, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(f"not done after {timeout_seconds} s:\n{self.said()}") from None

    def said(self):
        words = []
        for index, log in enumerate(self.logs):
            log.flush()
            log.seek(0)
            words.append(f"--- worker {index}\n{log.read()[-4000:]}")
        return "\n".join(words)


def run(environments, script, *arguments, timeout_seconds=600):
    """Runs workers to their end, all of which must succeed."""
    with Workers(environments, script, *arguments) as workers:
        statuses = workers.wait(timeout_seconds)
        assert not any(statuses), f"{statuses}\n{workers.said()}"


def once(basetemp, name, start, timeout_seconds=600):
    """The folder that `start` has filled, for all processes of one pytest run.

    pytest-xdist divides a file's tests among processes, each with fixtures of its own
    and a folder under one of the run's.
    """
    shared = basetemp.parent if "PYTEST_XDIST_WORKER" in os.environ else basetemp
    out, done, failed = shared / name, shared / f"{name}-done", shared / f"{name}-failed"
    try:
        out.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + timeout_seconds
        while not done.exists() and not failed.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert done.exists(), "the workers failed; see the tests of the other process"
        return out
    try:
        start(out)
        done.touch()
    finally:
        if not done.exists():
            failed.touch()
    return out
