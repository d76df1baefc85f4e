"""The workers of all machines, as one machine's launcher sees them."""

import dataclasses
import queue
import socket
import threading
import time
from typing import Any, Protocol

from tfaccel.launch.workers.errors import LaunchError
from tfaccel.launch.workers.ports import free_ports
from tfaccel.launch.workers.rendezvous import Hub, Link, connected

PATIENCE_SECONDS = 600.0  # clusters are slow to give all their machines
_RETRY_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Round:
    """One start of all workers.

    Attributes:
        addresses: of the workers of all machines, in order.
        first: the number of the first worker of this machine.
    """

    addresses: list[str]
    first: int


class Group(Protocol):
    """Who trains together. Events are put into the queue that `join` is handed."""

    def join(self, events: "queue.SimpleQueue[tuple[Any, ...]]") -> Round | None:
        """Waits for all machines, and tells of all workers; None after a signal.

        Puts `("stop", reason)` when another machine's workers fail, and `("all_ended",)` when all
        have ended.

        Raises:
            LaunchError: not all came, or this one is not among them.
        """

    def ended(self) -> None:
        """The workers of this machine have ended, all well."""

    def failed(self, reason: str) -> None:
        """One of them has not, or they were stopped."""

    def close(self) -> None:
        """There will be no further round."""


class Alone:
    """The workers of this machine alone."""

    def __init__(self, workers: int):
        self._workers = workers
        self._events: queue.SimpleQueue[tuple[Any, ...]] | None = None

    def join(self, events: "queue.SimpleQueue[tuple[Any, ...]]") -> Round:
        self._events = events
        return Round([f"127.0.0.1:{port}" for port in free_ports(self._workers)], 0)

    def ended(self) -> None:
        assert self._events is not None
        self._events.put(("all_ended",))

    def failed(self, reason: str) -> None:
        pass

    def close(self) -> None:
        pass


class Machines:
    """Several machines, which meet at the first one's address.

    Args:
        host, port: where the first listens.
        machine: this one's number.
        machines: how many there are.
        workers: of this machine.
        address: by what others reach this machine; None for what the connection says.
        patience_seconds: how long all are waited for.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        machine: int,
        machines: int,
        workers: int = 1,
        address: str | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ):
        self._place = (host, port)
        self._machine, self._machines, self._workers = machine, machines, workers
        self._address = host if machine == 0 and address is None else address
        self._patience = patience_seconds
        self._hub = Hub(port, machines) if machine == 0 else None
        self._link: Link | None = None

    def join(self, events: "queue.SimpleQueue[tuple[Any, ...]]") -> Round | None:
        deadline = time.monotonic() + self._patience
        while True:
            link = connected(*self._place)
            if link is not None:
                self._link = link
                self._introduce(link)
                threading.Thread(target=_listen, args=(link, events), daemon=True).start()
            event = _next(events, _RETRY_SECONDS if link is None else deadline - time.monotonic())
            if event is not None and event[0] == "cluster":
                return self._round(event[1])
            if event is not None and event[0] == "signal":
                events.put(event)
                return None
            if event is not None and event[0] == "refused":
                raise LaunchError(event[1])
            if time.monotonic() > deadline:
                raise LaunchError(self._late())
            if event is not None:  # the hub was in another round, which has ended: try again
                time.sleep(_RETRY_SECONDS)

    def ended(self) -> None:
        if self._link is not None:
            self._link.send({"ended": True})

    def failed(self, reason: str) -> None:
        if self._link is not None:
            self._link.send({"failed": reason})
            self._link.drop()
            self._link = None

    def close(self) -> None:
        if self._link is not None:
            self._link.drop()
        if self._hub is not None:
            self._hub.close()

    def _introduce(self, link: Link) -> None:
        address = self._address or link.connection.getsockname()[0]
        found = [f"{address}:{port}" for port in free_ports(self._workers)]
        link.send({"machine": self._machine, "of": self._machines, "addresses": found})

    def _round(self, by_machine: list[list[str]]) -> Round:
        first = sum(len(each) for each in by_machine[: self._machine])
        return Round([one for each in by_machine for one in each], first)

    def _late(self) -> str:
        host, port = self._place
        return (
            f"not all of {self._machines} machines came to {host}:{port} within "
            f"{self._patience:.0f} s. Start the same command on each, and see that the port can "
            "be reached"
        )


def _next(events: "queue.SimpleQueue[tuple[Any, ...]]", seconds: float) -> Any:
    try:
        return events.get(timeout=max(0.0, seconds))
    except queue.Empty:
        return None


def _listen(link: Link, events: "queue.SimpleQueue[tuple[Any, ...]]") -> None:
    """Hands on what the hub says, until the round is over."""
    while True:
        told = link.receive()
        if "cluster" in told:
            events.put(("cluster", told["cluster"]))
        elif "error" in told:
            events.put(("refused", told["error"]))
            return
        elif "all_ended" in told:
            events.put(("all_ended",))
            return
        else:
            events.put(("stop", told.get("stop", "the launcher of machine 0 is gone")))
            return


def is_local(host: str) -> bool:
    """Whether a name or address is this machine's."""
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError:
        return False
    for *_, place in found:
        with socket.socket() as one:
            try:
                one.bind((place[0], 0))
                return True
            except OSError:
                continue
    return False
