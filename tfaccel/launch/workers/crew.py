"""The workers of this machine: their processes, from start to end."""

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfaccel.launch.workers.lines import Lines

# Enough to write a last checkpoint, and no more: all must have ended within 15 seconds.
GRACE_SECONDS = 10.0
_LOOK_SECONDS = 0.02
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Crew:
    """Processes of one command, each with an environment and cores of its own.

    Args:
        command: the words.
        environments: that of each worker.
        cores: the logical CPUs of each; none to leave them as they are.
        first: the number of the first of them.
        lines: where what they print goes.
        events: is handed `("ended", number, status)` when a worker ends, in the order of ends.
    """

    def __init__(
        self,
        command: Sequence[str],
        environments: Sequence[Mapping[str, str]],
        cores: Sequence[set[int]],
        first: int,
        lines: Lines,
        events: "queue.SimpleQueue[tuple[Any, ...]]",
    ):
        self._lines = lines
        self._events = events
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        try:
            for place, environ in enumerate(environments):
                self._start(first + place, command, environ, cores[place] if cores else None)
        except BaseException:
            self.end(signal.SIGKILL)
            raise

    def _start(
        self, index: int, command: Sequence[str], environ: Mapping[str, str], cores: set[int] | None
    ) -> None:
        with _bound(cores):
            process = subprocess.Popen(
                command,
                env=dict(environ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                # Ctrl-C reaches the launcher alone, which hands it on once.
                start_new_session=True,
                preexec_fn=_ends_with_us(),
            )
        self.processes[index] = process
        assert process.stdout is not None and process.stderr is not None
        self._lines.follow(index, process.stdout, sys.stdout)
        self._lines.follow(index, process.stderr, sys.stderr)
        threading.Thread(target=self._wait, args=(index, process), daemon=True).start()

    def _wait(self, index: int, process: "subprocess.Popen[bytes]") -> None:
        self._events.put(("ended", index, process.wait()))

    @property
    def running(self) -> list[int]:
        """The numbers of those that have not ended."""
        return [index for index, one in self.processes.items() if one.poll() is None]

    def end(self, number: int, until: "queue.SimpleQueue[tuple[Any, ...]] | None" = None) -> None:
        """Ends all of them, and what they have begun; returns when none is left.

        Args:
            number: the signal that asks them to. Those that run on for `GRACE_SECONDS` are
                killed.
            until: anything in here has them killed at once, such as a second Ctrl-C.
        """
        for index in self.running:
            self._signal(index, number)
        deadline = time.monotonic() + GRACE_SECONDS
        while self.running and time.monotonic() < deadline:
            if number == signal.SIGKILL or (until is not None and not until.empty()):
                break
            time.sleep(_LOOK_SECONDS)
        for index in self.processes:
            self._signal(index, signal.SIGKILL, group=True)
        for process in self.processes.values():
            process.wait()
        self._lines.finish()

    def _signal(self, index: int, number: int, group: bool = False) -> None:
        process = self.processes[index]
        with contextlib.suppress(OSError):  # all of it has ended
            if group and hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)


@contextlib.contextmanager
def _bound(cores: set[int] | None) -> Any:
    """Processes that are started inside run on these cores, from their first instruction on."""
    if not cores or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores)
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ends_with_us() -> Callable[[], None] | None:
    """What has Linux kill a worker whose launcher was killed and so could not end it."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        prctl = ctypes.CDLL(None).prctl
    except (AttributeError, OSError):
        return None
    return lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
