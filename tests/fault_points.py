"""Makes functions of tfaccel fail, one at a time: which there are is seen while trainings run."""

import collections
import contextlib
import pathlib
import sys
import types
from collections.abc import Callable

PACKAGE = str(pathlib.Path(__file__).parent.parent / "tfaccel")


class Recorder:
    """Notes which functions of tfaccel run in a block, in this thread.

    Attributes:
        calls: how often each was entered; a generator also where it goes on.
    """

    def __init__(self):
        self.calls = collections.Counter()

    def __enter__(self):
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_):
        sys.settrace(self._before)

    def _trace(self, frame, event, argument):
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            self.calls[code] += 1


@contextlib.contextmanager
def failing(code: types.CodeType, error: BaseException, nth: int = 1):
    """In this block the nth entry of a function raises, before its first line, once.

    Python lets the exception of a trace function through to the function that it is told of, and
    forgets the trace function.

    Yields:
        A list, which is empty until that has happened.
    """

    def fail():
        raise error

    with doing(code, fail, nth) as happened:
        yield happened


@contextlib.contextmanager
def doing(code: types.CodeType, action: Callable[[], object], nth: int = 1):
    """In this block something is done at the nth entry of a function, before its first line.

    Yields:
        A list, which is empty until that has happened.
    """
    happened: list[types.CodeType] = []
    entries = 0

    def trace(frame, event, argument):
        nonlocal entries
        if frame.f_code is not code:
            return
        entries += 1
        if entries == nth:
            happened.append(code)
            action()

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield happened
    finally:
        sys.settrace(before)


def name_of(code: types.CodeType) -> str:
    """A function as people find it: its module below tfaccel, and its name."""
    module = pathlib.Path(code.co_filename).relative_to(PACKAGE).with_suffix("")
    qualified = getattr(code, "co_qualname", None) or f"{code.co_name}:{code.co_firstlineno}"
    return f"{'.'.join(module.parts)}.{qualified}"
