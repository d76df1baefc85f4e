"""Starts several workers on this machine, and reads what they measured."""

import argparse
import json
import os
import pathlib
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from tfaccel.cli._command import UsageError, positive_int
from tfaccel.cli._progress import progress
from tfaccel.cli.scaling.cost import parts
from tfaccel.cli.scaling.result import ScalingResult, ScalingRow, predicted
from tfaccel.launch.workers import binding
from tfaccel.launch.workers.cluster import manager
from tfaccel.launch.workers.errors import LaunchError
from tfaccel.launch.workers.group import Alone
from tfaccel.launch.workers.lines import Lines
from tfaccel.launch.workers.supervise import Share, Supervisor, environment
from tfaccel.system.machine import machine_facts

# What a process that imports TensorFlow and Keras is about to print anyway.
_QUIET = {"TF_CPP_MIN_LOG_LEVEL": "2"}


def bench_workers(
    args: argparse.Namespace, words_of: Callable[[argparse.Namespace], list[str]]
) -> ScalingResult:
    """Measures the steps of several workers, and predicts those of more.

    Args:
        args: the flags of `tfaccel bench`.
        words_of: the command line for flags; those that are None are left out.
    """
    begun = time.perf_counter()
    counts = _counts(args.workers)
    asked = argparse.Namespace(**{**vars(args), "plans": None, "devices": None})
    again = [*words_of(asked), f"--workers={','.join(map(str, counts))}"]
    asked.max_seconds /= len(counts)
    rows: list[ScalingRow] = []
    told: list[Any] = []
    with progress() as progressing:
        for count in counts:
            progressing.stage(f"Training by {count} worker{'s' * (count > 1)}")
            row, told = measure_workers(words_of(asked), count, counts[-1])
            rows.append(row)
    facts = told[0]
    cost, predictions, assumed = predicted(rows, facts["gradient_bytes"])
    return ScalingResult(
        model=args.model,
        parameters=facts["parameters"],
        gradient_bytes=facts["gradient_bytes"],
        batch_size=facts["samples"] // counts[-1],
        source=facts["source"],
        machine=machine_facts(),
        command=shlex.join(["tfaccel", *again]),
        seconds=time.perf_counter() - begun,
        rows=tuple(rows),
        cost=cost,
        predictions=predictions,
        notes=(*facts["notes"], *assumed, *_crowded(counts[-1])),
    )


def _counts(words: Sequence[str]) -> list[int]:
    try:
        counts = sorted({positive_int(word) for word in words})
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--workers: each {error}") from error
    if not counts:
        raise UsageError("--workers must name numbers of workers, such as 1,2,3,4")
    return counts


def _crowded(most: int) -> list[str]:
    cores = len(binding.allowed_cores())
    if not cores or most <= cores:
        return []
    return [
        f"More workers than cores ({cores}) share them all: what that costs is counted as compute, "
        "waiting and all-reduce."
    ]


def measure_workers(words: Sequence[str], count: int, most: int) -> tuple[ScalingRow, list[Any]]:
    """Measures the steps of several workers on this machine.

    Args:
        words: of `tfaccel`, for each of them.
        count: how many.
        most: workers in any row: each gets its share of cores and GPUs as among so many, so that
            a worker is the same in each row.

    Returns:
        What was found, and what each worker wrote.

    Raises:
        UsageError: they can't be started, or one failed; it has said why.
    """
    if found := manager(os.environ):
        raise UsageError(f"--workers starts workers of its own, and here {found}")
    with tempfile.TemporaryDirectory(prefix="tfaccel-bench-") as folder:
        status = start([*words, f"--launched={folder}"], shares_of(count, most))
        if status:
            raise UsageError(f"a worker of {count} failed (exit status {status}): see above")
        told = [
            json.loads(pathlib.Path(folder, f"worker-{index}.json").read_text(encoding="utf-8"))
            for index in range(count)
        ]
    return row_of(told), told


def start(words: Sequence[str], shares: Sequence[Share]) -> int:
    """Runs `tfaccel` with these words on each worker; their exit status."""
    supervisor = Supervisor(
        [sys.executable, "-m", "tfaccel", *words],
        shares,
        Alone(len(shares)),
        max_restarts=0,
        environ=environment({**_QUIET, **os.environ}),
        lines=Lines(),
    )
    return supervisor.run()


def shares_of(count: int, most: int) -> list[Share]:
    """The cores and GPUs of each of `count` workers: what it would have among `most`.

    Where there are fewer cores than `most`, workers have one each while that lasts; more workers
    than cores share all.

    Raises:
        UsageError: there are GPUs, and fewer than workers.
    """
    allowed = binding.allowed_cores()
    cores = [set() for _ in range(count)] if count > len(allowed) else _cores(allowed, most)
    try:
        gpus = binding.shares_of_gpus(binding.gpus(os.environ), most)
    except LaunchError as error:
        raise UsageError(str(error)) from error
    visible = [{binding.VISIBLE: each} for each in gpus] or [{} for _ in range(count)]
    return [Share(visible[place], cores[place]) for place in range(count)]


def _cores(allowed: set[int], most: int) -> list[set[int]]:
    return binding.shares_of_cores(allowed, min(most, len(allowed)))


def row_of(told: Sequence[Any]) -> ScalingRow:
    """The row of what all workers of a training wrote."""
    # A step is as long as that of the slowest.
    step = statistics.median(map(max, zip(*(one["together"] for one in told), strict=True)))
    return ScalingRow(
        workers=len(told),
        step_seconds=step,
        samples_per_second=told[0]["samples"] / step,
        parts=parts(step, [one["alone"] for one in told]),
    )
