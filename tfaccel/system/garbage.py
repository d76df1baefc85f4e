"""Python's garbage collector, which rests while objects are made that stay."""

from __future__ import annotations

import contextlib
import gc

TYPE_CHECKING = False  # as in `typing`, which a program need not wait for
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def resting_collector() -> Iterator[None]:
    """No garbage is collected inside the block, and afterwards as before it.

    An import of TensorFlow makes a million objects that stay. Python looks through them nearly a
    thousand times meanwhile, a fifth of the import's time. Afterwards they count as old, so that
    they are looked at when Python looks at everything, and not at once.
    Where the program has switched the collector off, or keeps objects out of its sight
    (`gc.freeze`), it is left alone.
    """
    usual = gc.get_threshold()
    if not usual[0] or not gc.isenabled() or gc.get_freeze_count():
        yield
        return
    gc.set_threshold(0)
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # into the oldest generation
        if not gc.get_threshold()[0]:  # else the program has set its own
            gc.set_threshold(*usual)


# What the collector has rested for in this process.
RESTED: list[str] = []


@contextlib.contextmanager
def resting_first(what: str) -> Iterator[None]:
    """The same, once in a process for each `what`: in a loop, what is dropped must be collected.

    The collector would not count what is made inside, and would come later than it should.
    """
    if what in RESTED:
        yield
        return
    RESTED.append(what)
    with resting_collector():
        yield
