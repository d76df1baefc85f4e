"""How the launchers of several machines find each other, and hear of each other's ends.

One listens, at an address that all are told; all of them, it too, connect to it. When all are
there each is told the workers' addresses, and the training begins: that is a round. It ends when
the workers of all have ended, or some have failed: then all are told so. Messages are JSON, a line
each.
"""

import contextlib
import json
import socket
import threading
from typing import Any

from tfaccel.launch.workers.errors import LaunchError

_CONNECT_SECONDS = 5.0
_LEAVING_SECONDS = 5.0  # to notice that a machine which comes back had left
# For a silent connection, in seconds and probes: a network may fail without either end noticing.
_KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
_LONGEST = 2**20  # bytes of a message


class Hub:
    """The end that listens.

    Args:
        port: where.
        machines: how many are to come.

    Raises:
        LaunchError: the port is taken.
    """

    def __init__(self, port: int, machines: int):
        self._machines = machines
        self._lock = threading.Condition()
        self._members: dict[int, Link] = {}
        self._addresses: dict[int, list[str]] = {}
        self._ended: set[int] = set()
        try:
            self._server = socket.create_server(("", port))
        except OSError as error:
            raise LaunchError(f"port {port} of the rendezvous can't be used: {error}") from error
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Listens no more."""
        with self._lock:  # a message that is on its way still reaches all
            self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(Link(connection),), daemon=True).start()

    def _serve(self, link: "Link") -> None:
        """One machine for one round."""
        told = link.receive()
        machine: Any = told.get("machine")
        with self._lock:
            wrong = self._refusal(told)
            if not wrong and not self._lock.wait_for(
                lambda: machine not in self._members, _LEAVING_SECONDS
            ):
                wrong = f"number {machine} is there already"
            if wrong:
                link.send({"error": wrong})
                link.close()
                return
            self._members[machine] = link
            self._addresses[machine] = told["addresses"]
            if len(self._members) == self._machines:
                found = [self._addresses[each] for each in range(self._machines)]
                self._tell({"cluster": found})
        while told:
            told = link.receive()
            with self._lock:
                if self._members.get(machine) is link:
                    self._heard(machine, told)

    def _refusal(self, told: dict[str, Any]) -> str:
        machine, of = told.get("machine"), told.get("of")
        if not isinstance(machine, int) or not isinstance(told.get("addresses"), list):
            return "this port is the rendezvous of `tfaccel run`"
        if of != self._machines:
            return f"the rendezvous waits for {self._machines}, and this one was told of {of}"
        if not 0 <= machine < self._machines:
            return f"there is no number {machine} among {self._machines}: they count from 0"
        return ""

    def _heard(self, machine: int, told: dict[str, Any]) -> None:
        whole = len(self._members) == self._machines
        if told.get("ended"):
            self._ended.add(machine)
            if len(self._ended) == self._machines:
                self._finish({"all_ended": True})
        elif whole:
            self._finish({"stop": told.get("failed", f"the launcher of machine {machine} is gone")})
        else:  # it left before all had come
            del self._members[machine]
            self._lock.notify_all()

    def _finish(self, message: dict[str, Any]) -> None:
        """Ends the round; the next begins with no one."""
        self._tell(message)
        for link in self._members.values():
            link.close()
        self._members, self._addresses, self._ended = {}, {}, set()
        self._lock.notify_all()

    def _tell(self, message: dict[str, Any]) -> None:
        for link in self._members.values():
            link.send(message)


class Link:
    """One connection, by messages."""

    def __init__(self, connection: socket.socket):
        self.connection = connection
        connection.settimeout(None)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for name, value in _KEEPALIVE:
                if hasattr(socket, name):
                    connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self._reader = connection.makefile("rb")

    def send(self, message: dict[str, Any]) -> None:
        """Sends, if there is still someone to hear it."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """The next message; empty at the end."""
        try:
            found = json.loads(self._reader.readline(_LONGEST))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def close(self) -> None:
        """Lets the other end see the end of messages."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)

    def drop(self) -> None:
        """Ends the connection in both directions."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self.connection.close()


def connected(host: str, port: int) -> Link | None:
    """A connection to the hub; None where it does not listen yet."""
    try:
        return Link(socket.create_connection((host, port), timeout=_CONNECT_SECONDS))
    except OSError:
        return None
