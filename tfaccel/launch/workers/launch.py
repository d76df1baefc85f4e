"""From what the user asked for to workers that train."""

import os
from collections.abc import Sequence

from tfaccel.launch.workers import binding
from tfaccel.launch.workers.hosts import meeting
from tfaccel.launch.workers.kept_fits import forget
from tfaccel.launch.workers.lines import Lines
from tfaccel.launch.workers.request import Request
from tfaccel.launch.workers.supervise import Share, Supervisor, environment


def launch(command: Sequence[str], request: Request) -> int:
    """Starts the workers of this machine, and waits for their end.

    Args:
        command: what each runs.
        request: how many, where, and what happens when one fails.

    Returns:
        The exit status (`Supervisor.run`).

    Raises:
        LaunchError: they can't be started as asked.
    """
    lines = Lines()
    found = binding.gpus(os.environ)
    group, workers, is_first = meeting(request, os.environ)
    try:
        shares = shares_of(workers, found, request, lines)
        supervisor = Supervisor(
            command,
            shares,
            group,
            max_restarts=request.max_restarts,
            environ=environment(os.environ),
            lines=lines,
        )
    except BaseException:
        group.close()
        raise
    status = supervisor.run()
    if not status and is_first and request.backup_dir is not None:
        forget(request.backup_dir)
    return status


def shares_of(workers: int, found: Sequence[str], request: Request, lines: Lines) -> list[Share]:
    """What each worker of this machine gets of its cores and GPUs."""
    visible = binding.shares_of_gpus(found, workers) if workers > 1 else []
    allowed = binding.allowed_cores()
    cores: list[set[int]] = []
    if request.bind and workers > 1 and allowed:
        cores = binding.shares_of_cores(allowed, workers)
        if not cores:
            lines.say(f"{workers} workers share {len(allowed)} cores: none has cores of its own")
    return [
        Share(
            {binding.VISIBLE: visible[place]} if visible else {},
            cores[place] if cores else set(),
        )
        for place in range(workers)
    ]
