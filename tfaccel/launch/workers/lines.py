"""What workers print, in whole lines that begin with the worker's number."""

import contextlib
import sys
import threading
from typing import IO, Any

# How long to wait for streams that children of a worker, which outlive it, may hold open.
_LATEST_SECONDS = 2.0


class Lines:
    """Copies streams of workers to this process's own.

    Standard output and standard error stay apart. A line that a worker has not ended is held until
    it does, or is gone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # no line is printed inside another
        self._threads: list[threading.Thread] = []

    def follow(self, index: int, source: IO[bytes], into: Any) -> None:
        """Begins to copy.

        Args:
            index: the worker's number.
            source: a pipe; closed at its end.
            into: `sys.stdout` or `sys.stderr`.
        """
        prefix = f"[{index}] ".encode()
        thread = threading.Thread(target=self._copy, args=(prefix, source, into), daemon=True)
        thread.start()
        self._threads.append(thread)

    def finish(self) -> None:
        """Waits until all that was printed is copied."""
        for thread in self._threads:
            thread.join(_LATEST_SECONDS)
        self._threads.clear()

    def say(self, line: str) -> None:
        """Prints a line of the launcher's own on standard error."""
        with self._lock, contextlib.suppress(AttributeError, OSError, ValueError):
            print(f"tfaccel run: {line}", file=sys.stderr, flush=True)

    def _copy(self, prefix: bytes, source: IO[bytes], into: Any) -> None:
        with source:
            for line in source:
                whole = line if line.endswith(b"\n") else line + b"\n"
                # Our reader may be gone. Workers are read on, or they would block on a full pipe.
                with self._lock, contextlib.suppress(AttributeError, OSError, ValueError):
                    _write(into, prefix + whole)


def _write(into: Any, data: bytes) -> None:
    binary = getattr(into, "buffer", None)
    if binary is None:  # stands in for a stream
        into.write(data.decode(errors="replace"))
    else:
        binary.write(data)
    into.flush()
