"""Workers of one training on this machine, each behind words of its own (`taskset`, `ip netns`)."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import _common
import tensorflow as tf

from tfaccel.launch.workers.cluster import TF_CONFIG, tf_config
from tfaccel.launch.workers.ports import free_ports

_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}
_LOOK_SECONDS = 0.1


def run_workers(
    words: Sequence[str],
    prefixes: Sequence[Sequence[str]],
    hosts: Sequence[str] | None = None,
    most_seconds: float = 600.0,
) -> list[dict[str, Any]]:
    """What each worker wrote into its file; raises RuntimeError where one fails or takes too long.

    Args:
        words: after `python`; the folder that they are to write `worker-INDEX.json` into follows.
        prefixes: what stands before `python` for each of them.
        hosts: the address of each; None for this machine's own.
        most_seconds: that all may take.
    """
    hosts = hosts or ["127.0.0.1"] * len(prefixes)
    ports = free_ports(len(prefixes))
    addresses = [f"{host}:{port}" for host, port in zip(hosts, ports, strict=True)]
    with tempfile.TemporaryDirectory(prefix="tfaccel-workers-") as folder:
        processes = []
        try:
            for index, prefix in enumerate(prefixes):
                environ = _environ() | {TF_CONFIG: tf_config(addresses, index)}
                if len(prefixes) == 1:
                    del environ[TF_CONFIG]
                with pathlib.Path(folder, f"log-{index}").open("w") as log:
                    command = [*prefix, sys.executable, *words, folder]
                    processes.append(
                        subprocess.Popen(command, env=environ, stdout=log, stderr=subprocess.STDOUT)
                    )
            _wait(processes, pathlib.Path(folder), time.monotonic() + most_seconds)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [
            json.loads(pathlib.Path(folder, f"worker-{index}.json").read_text(encoding="utf-8"))
            for index in range(len(prefixes))
        ]


def _wait(processes: Sequence[Any], folder: pathlib.Path, deadline: float) -> None:
    while any(process.poll() is None for process in processes):
        failed = next((i for i, one in enumerate(processes) if one.poll()), None)
        if failed is not None or time.monotonic() > deadline:
            break
        time.sleep(_LOOK_SECONDS)
    for index, process in enumerate(processes):
        status = process.poll()
        if status != 0:
            said = pathlib.Path(folder, f"log-{index}").read_text(errors="replace")[-2000:]
            how = "took too long" if status is None else f"ended with {status}"
            if status is not None or not any(one.poll() for one in processes):
                raise RuntimeError(f"worker {index} {how}:\n{said}")


def leave(folder: str, found: dict[str, Any], strategy: Any) -> None:
    """Writes what this worker found for `run_workers`, and waits for the others."""
    index = json.loads(os.environ.get(TF_CONFIG, "{}")).get("task", {}).get("index", 0)
    path = pathlib.Path(folder, f"worker-{index}.json")
    path.write_text(json.dumps(found), encoding="utf-8")
    # Who leaves breaks the rest.
    strategy.reduce("SUM", tf.constant(1.0), axis=None)


def cores() -> list[int]:
    """The logical CPUs that may be used."""
    return sorted(os.sched_getaffinity(0))


def on_core(core: int) -> list[str]:
    """What stands before a command that is to have this logical CPU alone."""
    return ["taskset", "-c", str(core)]


def _environ() -> dict[str, str]:
    paths = [str(_common.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**_QUIET, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
