"""What is asked of the launcher of workers."""

from typing import NamedTuple


class Request(NamedTuple):
    """What the user asks for, as the command line has it.

    Attributes:
        workers: on this machine; with `rendezvous`, of all machines. None where it was not said.
        hosts: a file with a machine a line.
        rendezvous: `"host:port"` at which workers meet.
        worker_index: this worker's number; with `hosts`, that of this machine's line. From 0.
        max_restarts: how often all are started again.
        backup_dir: where fits are kept.
        bind: whether workers get cores of their own.
    """

    workers: int | None = None
    hosts: str | None = None
    rendezvous: str | None = None
    worker_index: int | None = None
    max_restarts: int = 0
    backup_dir: str | None = None
    bind: bool = True

    @property
    def is_asked(self) -> bool:
        """Whether workers are to be started at all."""
        several = (self.workers, self.hosts, self.rendezvous)
        return any(one is not None for one in several) or self.max_restarts > 0
