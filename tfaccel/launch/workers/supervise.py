"""Workers from their first start to the last: failures, restarts, Ctrl-C."""

import dataclasses
import queue
import signal
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tfaccel.launch.workers.cluster import TF_CONFIG, tf_config
from tfaccel.launch.workers.crew import Crew
from tfaccel.launch.workers.errors import LaunchError
from tfaccel.launch.workers.group import Group, Round
from tfaccel.launch.workers.lines import Lines

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
_EXIT_LAUNCH = 2
_EXIT_STOPPED = 1  # by the failure of another machine's worker


@dataclasses.dataclass(frozen=True)
class Share:
    """What one worker of this machine gets beside its place in the cluster."""

    environ: Mapping[str, str]
    cores: set[int]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a round ended: the exit status, the line that says why, and whether by a signal."""

    status: int
    reason: str = ""
    by_signal: bool = False


class Supervisor:
    """Starts the workers of this machine, and again when one of any machine fails.

    Args:
        command: what each worker runs.
        shares: of each.
        group: the workers of all machines.
        max_restarts: how often all are started again.
        environ: what all have.
        lines: where they print.
    """

    def __init__(
        self,
        command: Sequence[str],
        shares: Sequence[Share],
        group: Group,
        *,
        max_restarts: int,
        environ: Mapping[str, str],
        lines: Lines,
    ):
        self._command, self._shares, self._group = command, shares, group
        self._max_restarts, self._environ, self._lines = max_restarts, environ, lines
        self._events: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._crew: Crew | None = None

    def run(self) -> int:
        """Runs the workers until they end.

        Returns:
            0; the exit status of the first worker that failed (128 and its number where a signal
            ended it); 1 where another machine's failed; 128 and its number for a signal that the
            launcher got; 2 where the workers could not be started.
        """
        restore = _handled(self._signalled)
        try:
            return self._rounds()
        except LaunchError as error:
            self._lines.say(str(error))
            return _EXIT_LAUNCH
        finally:
            if self._crew is not None and self._crew.running:
                self._crew.end(signal.SIGKILL)
            self._group.close()
            restore()

    def _rounds(self) -> int:
        restarts = 0
        while True:
            outcome = self._round()
            if not outcome.reason:
                return outcome.status
            again = restarts < self._max_restarts and not outcome.by_signal
            restarts += again
            then = f"all are started again ({restarts} of {self._max_restarts})"
            self._lines.say(f"{outcome.reason}; {then if again else 'all were ended'}")
            if not again:
                return outcome.status

    def _round(self) -> Outcome:
        place = self._group.join(self._events)
        if place is not None:
            self._crew = self._started(place)
        outcome = self._watched()
        if outcome.reason:
            self._group.failed(outcome.reason)
            # Each round has a queue of its own, so that late events of this one are ignored.
            before, self._events = self._events, queue.SimpleQueue()
            if self._crew is not None:
                self._crew.end(_asking(outcome), until=self._events)
            if not outcome.by_signal:
                outcome = _interrupted(before) or _interrupted(self._events) or outcome
        return outcome

    def _started(self, place: Round) -> Crew:
        environments = []
        for index, share in enumerate(self._shares, place.first):
            environ = {**self._environ, **share.environ}
            if len(place.addresses) > 1:
                environ[TF_CONFIG] = tf_config(place.addresses, index)
            environments.append(environ)
        cores = [share.cores for share in self._shares]
        return Crew(
            self._command,
            environments,
            cores if all(cores) else [],
            place.first,
            self._lines,
            self._events,
        )

    def _watched(self) -> Outcome:
        """Waits for the end of a round, or for the first thing that goes wrong."""
        remaining = len(self._shares)
        while True:
            what, *facts = self._events.get()
            if what == "signal":
                return _by_signal(facts[0])
            if what == "stop":
                return Outcome(_EXIT_STOPPED, facts[0])
            if what == "all_ended":
                self._lines.finish()
                return Outcome(0)
            if what == "ended":
                index, status = facts
                if status:
                    return Outcome(*_failure(index, status))
                remaining -= 1
                if not remaining:
                    self._group.ended()

    def _signalled(self, number: int) -> None:
        self._events.put(("signal", number))


def _by_signal(number: int) -> Outcome:
    return Outcome(128 + number, f"{signal.Signals(number).name} was received", by_signal=True)


def _asking(outcome: Outcome) -> int:
    """The signal that asks workers to end: that of the launcher, as far as programs know it."""
    return signal.SIGINT if outcome.status == 128 + signal.SIGINT else signal.SIGTERM


def _interrupted(events: "queue.SimpleQueue[tuple[Any, ...]]") -> Outcome | None:
    """The signal that came during another end: whoever wants to stop gets no restart."""
    while not events.empty():
        what, *facts = events.get()
        if what == "signal":
            return _by_signal(facts[0])
    return None


def _failure(index: int, status: int) -> tuple[int, str]:
    """The exit status as a shell has it, and the words."""
    if status > 0:
        return status, f"worker {index} ended with exit status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    return 128 - status, f"worker {index} was ended by {name}"


def _handled(then: Callable[[int], None]) -> Callable[[], None]:
    """Hands signals to `then`; gives what puts handlers back. Ignored signals stay ignored."""
    before = {}

    def handle(number: int, _: types.FrameType | None) -> None:
        then(number)

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, handle)

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The workers' environment: Python shows lines when they are printed, through a pipe too."""
    return {"PYTHONUNBUFFERED": "1", **environ}
