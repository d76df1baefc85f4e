"""Whole processes, timed by the clock and by what they use of the cores."""

import compileall
import dataclasses
import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

import _common


@dataclasses.dataclass(frozen=True)
class Timed:
    """A process that has ended.

    Attributes:
        seconds: from its start to its end.
        cpu_seconds: of all cores, its own children included. Other work on the machine disturbs
            them less than the clock's.
        out, said: what it wrote to standard output and standard error.
    """

    seconds: float
    cpu_seconds: float
    out: str
    said: str


def timed(
    words: Sequence[str], folder: str | os.PathLike[str], more: Mapping[str, str] | None = None
) -> Timed:
    """Runs Python with these words, and this repository's tfaccel; raises where it fails.

    Args:
        words: after `python`.
        folder: to run in.
        more: variables of the environment.
    """
    before, start = _used_by_children(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        check=False,
        env=_environ() | dict(more or {}),
        cwd=folder,
    )
    seconds, used = time.perf_counter() - start, _used_by_children() - before
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {done.stderr.strip()[-500:]}")
    return Timed(seconds, used, done.stdout, done.stderr)


def compile_ours() -> None:
    """Writes the byte code that installed packages have, so that no process compiles tfaccel."""
    compileall.compile_dir(_common.REPOSITORY / "tfaccel", quiet=1)


def _used_by_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _environ() -> dict[str, str]:
    paths = [str(_common.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    return environ
