"""Which machines take part: a file of hosts, or a rendezvous and this worker's number."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping

from tfaccel.launch.workers.cluster import given_index
from tfaccel.launch.workers.errors import LaunchError
from tfaccel.launch.workers.group import Alone, Group, Machines, is_local
from tfaccel.launch.workers.request import Request

# What torchrun takes where none is named.
DEFAULT_PORT = 29400


@dataclasses.dataclass(frozen=True)
class Host:
    """One line of a file of hosts: a name, how many workers, and the port of its rendezvous."""

    name: str
    slots: int
    port: int


def meeting(request: Request, environ: Mapping[str, str]) -> tuple[Group, int, bool]:
    """Who trains together, the workers of this machine, and whether it is the first machine.

    Raises:
        LaunchError: words that don't go together, or a file that can't be read.
    """
    if request.hosts is not None and request.rendezvous is not None:
        raise LaunchError("--hosts and --rendezvous exclude each other: give one of them")
    if request.hosts is not None:
        return _by_hosts(request)
    if request.rendezvous is not None:
        return _by_rendezvous(request, request.rendezvous, environ)
    if request.worker_index is not None:
        raise LaunchError("--worker_index needs --rendezvous HOST:PORT, or --hosts")
    workers = request.workers or 1
    return Alone(workers), workers, True


def _by_hosts(request: Request) -> tuple[Group, int, bool]:
    hosts = read(pathlib.Path(str(request.hosts)))
    if request.workers is not None:
        raise LaunchError("with --hosts the file says how many workers there are (`name slots=N`)")
    index = here(hosts, request.worker_index)
    own, first = hosts[index], hosts[0]
    if len(hosts) == 1:
        return Alone(own.slots), own.slots, True
    group = Machines(
        first.name,
        first.port,
        machine=index,
        machines=len(hosts),
        workers=own.slots,
        address=own.name,
    )
    return group, own.slots, index == 0


def _by_rendezvous(
    request: Request, place: str, environ: Mapping[str, str]
) -> tuple[Group, int, bool]:
    index = given_index(environ) if request.worker_index is None else request.worker_index
    if request.workers is None or index is None:
        raise LaunchError("--rendezvous needs --workers N, of all machines, and --worker_index I")
    if not 0 <= index < request.workers:
        raise LaunchError(
            f"--worker_index must be from 0 to {request.workers - 1}. Received: {index}"
        )
    if request.workers == 1:
        return Alone(1), 1, True
    host, port = split(place, "--rendezvous")
    group = Machines(host, port, machine=index, machines=request.workers)
    return group, 1, index == 0


def read(path: pathlib.Path) -> list[Host]:
    """The machines in a file: `name[:port] [slots=N]` a line, `#` before a comment.

    Raises:
        LaunchError: it can't be read, has no lines, or a line that is another thing.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(f"--hosts: {path} can't be read: {error}") from error
    lines = (line.partition("#")[0].split() for line in text.splitlines())
    found = [_host(words) for words in lines if words]
    if not found:
        raise LaunchError(f"--hosts: {path} names no machine")
    return found


def _host(words: list[str]) -> Host:
    slots = "1"
    if len(words) == 2 and words[1].startswith("slots="):
        slots = words[1].removeprefix("slots=")
    elif len(words) != 1:
        slots = ""
    if not slots.isdecimal() or not int(slots):
        raise LaunchError(f"--hosts: a line is `name[:port] [slots=N]`. Received: {words}")
    name, port = split(words[0], "--hosts") if ":" in words[0] else (words[0], DEFAULT_PORT)
    return Host(name, int(slots), port)


def here(hosts: list[Host], given: int | None, local: Callable[[str], bool] = is_local) -> int:
    """Which of the hosts this machine is.

    Raises:
        LaunchError: none is, or several may be, and nobody said which.
    """
    if given is not None:
        if not 0 <= given < len(hosts):
            raise LaunchError(
                f"--worker_index must be from 0 to {len(hosts) - 1} with these hosts. "
                f"Received: {given}"
            )
        return given
    if len(hosts) == 1:
        return 0
    found = [index for index, host in enumerate(hosts) if local(host.name)]
    if len(found) != 1:
        many = "none of the hosts is" if not found else "several of the hosts are"
        raise LaunchError(f"{many} this machine: say which by --worker_index, from 0")
    return found[0]


def split(place: str, flag: str) -> tuple[str, int]:
    """`"host:port"` in its parts; LaunchError for another thing."""
    host, _, port = place.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise LaunchError(f"{flag} takes HOST:PORT. Received: {place!r}")
    return host, int(port)
