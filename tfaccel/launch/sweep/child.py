"""One turn of a sweep: the program in a process of its own, until its first steps are timed."""

import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO

from tfaccel.launch.program import Program
from tfaccel.launch.sweep.race import TurnError
from tfaccel.launch.sweep.settings import Setting

_SHOWN = 300  # characters of what a program said before it failed


def words_of(program: Program, report: pathlib.Path) -> list[str]:
    """The command line that times the program's first steps, and writes the report."""
    module = ["-m"] if program.is_module else []
    words = [sys.executable, "-m", "tfaccel", "run", f"--measure_into={report}", *module]
    return [*words, program.name, *program.arguments]


class Children:
    """Runs turns.

    Args:
        program: what to run.
        environ: what all turns have, the user's own environment included.
    """

    def __init__(self, program: Program, environ: Mapping[str, str]):
        self._program = program
        self._environ = environ
        self.compiles: bool | None = None  # by XLA, in the last turn; None before

    def __call__(self, setting: Setting, seconds: float) -> float:
        """The median step of the program's first fit, in seconds.

        What the program prints is not shown, and it reads nothing; when its steps are timed it is
        stopped, with all processes that it began.

        Raises:
            TurnError: it ended before, or took longer than `seconds`.
        """
        with tempfile.TemporaryDirectory(prefix="tfaccel-sweep-") as folder:
            report, said = pathlib.Path(folder, "steps.json"), pathlib.Path(folder, "stderr")
            words = words_of(self._program, report)
            with said.open("wb") as errors:
                status = _status(words, {**self._environ, **setting.environ}, errors, seconds)
            if report.is_file():
                told = json.loads(report.read_text(encoding="utf-8"))
                self.compiles = bool(told["compiles"])
                return float(told["step_seconds"])
            raise TurnError(_reason(self._program, status, said, seconds))


def _status(
    words: Sequence[str], environ: Mapping[str, str], errors: IO[bytes], seconds: float
) -> int | None:
    """The exit status; None where time ran out. No process that was begun is left."""
    process = subprocess.Popen(
        words,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(OSError):  # all of them have ended
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _reason(program: Program, status: int | None, said: pathlib.Path, seconds: float) -> str:
    """Why there is no report."""
    if status is None:
        return f"no `fit` had made its first steps within {seconds:.0f} s"
    if not status:
        return "the program ended, and no `fit` had made enough steps to time"
    text = said.read_text(encoding="utf-8", errors="replace").strip()
    last = text.splitlines()[-1] if text else "it printed nothing"
    shown = shlex.join([program.name, *program.arguments])
    return f"{shown} ended with status {status}: {last[-_SHOWN:]}"
