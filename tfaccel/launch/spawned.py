"""Work to be done first in every process that a program begins by `multiprocessing`."""

from __future__ import annotations

import importlib
import os
import sys

from tfaccel.launch.imports import after_import

TYPE_CHECKING = False  # as in `typing`, which a program need not wait for
if TYPE_CHECKING:
    import types
    from collections.abc import Callable
    from typing import Any

    # Keeps by itself whatever must outlive the call.
    Begin = Callable[[Any], None]
# The id of the process that has begun already.
begun_in: list[int] = []


def first_in_workers(begin: Begin, given: Any) -> None:
    """Has each process that is spawned, or begun by a fork server, call `begin(given)` first.

    A forked process has what its parent has, and calls nothing. The others are handed their
    process object, pickled; `begin(given)` becomes part of how it is unpickled. That is after the
    program's main module was imported there, and before the process's own work.

    Args:
        begin: a module's function, which may raise: then the process goes on without.
        given: what to hand it; can be pickled.
    """
    begun_in[:] = [os.getpid()]
    after_import("multiprocessing", lambda module: _patch(module, begin, given))


def _patch(module: types.ModuleType, begin: Begin, given: Any) -> None:
    try:
        process = importlib.import_module(f"{module.__name__}.process").BaseProcess
        pickled = process.__reduce_ex__
    except (ImportError, AttributeError):
        return

    def reduce(self: Any, protocol: Any) -> Any:
        made = pickled(self, protocol)
        if not isinstance(made, tuple) or not is_found():
            return made
        return (unpickled, (begin, given, *made[:2]), *made[2:])

    process.__reduce_ex__ = reduce


def is_found() -> bool:
    """Whether another Python with this one's path finds tfaccel; else it could unpickle nothing."""
    package = __name__.partition(".")[0]
    finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
    return any(find is not None and find(package, None) is not None for find in finders)


def unpickled(begin: Begin, given: Any, make: Callable[..., Any], words: tuple[Any, ...]) -> Any:
    """The process object, made as it would have been, in a process that has begun."""
    if os.getpid() not in begun_in:
        try:
            begin(given)
        except Exception as error:
            print(f"tfaccel: fits are left as they are: {error}", file=sys.stderr)
    return make(*words)
