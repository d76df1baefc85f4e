"""Which points of which trainings are made to fail, and by what: a rotation, or the full product.

python tests/fault_grid.py trials             # the rotation's points of one training, as it goes
python tests/fault_grid.py trials all         # every point of it, with its first and last entry
python tests/fault_grid.py trials interrupts  # every point of it, interrupted by the user
"""

import errno
import inspect
import sys
import time
import types
import zlib
from collections.abc import Iterator

import tensorflow as tf
from fault_points import name_of
from fault_trainings import TRAININGS, problems_with, recorded

from tfaccel.callbacks.accelerate import AccelCallback
from tfaccel.steps.own_step import OwnStep
from tfaccel.steps.taken_batches import TakenBatches
from tfaccel.training import step_dispatcher
from tfaccel.training.step_dispatcher import StepDispatcher
from tfaccel.training.validation import Validation

Point = tuple[types.CodeType, int, BaseException]

FAULTS = [
    RuntimeError("a fault"),
    tf.errors.ResourceExhaustedError(None, None, "out of memory"),
    MemoryError(),
    OSError(errno.ENOSPC, "No space left on device"),
]
# What Keras calls, and what catches faults: nothing stands above these.
_LAST_LINES = {
    AccelCallback: ("_own_work", "_give_up"),
    TakenBatches: ("done",),
    OwnStep: ("__call__", "made", "note"),
    StepDispatcher: ("__call__", "note", "leave", "_end", "_remove", "_leave_unless_needed"),
    Validation: ("_run", "_fault"),
}
LAST_LINES = {
    *(f.__code__ for name, f in vars(AccelCallback).items() if name.startswith("on_")),
    *(
        getattr(vars(kind)[name], "__wrapped__", getattr(kind, name)).__code__
        for kind, names in _LAST_LINES.items()
        for name in names
    ),
    step_dispatcher._history.__code__,
}
_OUTER = ("training.", "fit.", "callbacks.")
_TOLD_APART = {"OpError", "ResourceExhaustedError", "MemoryError", "OSError"}


def _turn(code: types.CodeType) -> int:
    """The same in every process."""
    return zlib.crc32(name_of(code).encode())


def _kinds(code: types.CodeType) -> list[BaseException]:
    if _TOLD_APART & {*code.co_names}:
        return FAULTS
    return [FAULTS[_turn(code) % len(FAULTS)]]


def _last(code: types.CodeType, count: int) -> int:
    """The last entry; a generator's may be to close it, where Python drops what it raises."""
    return 1 if code.co_flags & inspect.CO_GENERATOR else count


def rotation(name: str) -> Iterator[Point]:
    """What a training has to try, so that all of them together try every function.

    Of what runs a fit the first entry in one training and the last one in the next; of what it
    calls the first entry.
    """
    having: dict[types.CodeType, list[str]] = {}
    for training in TRAININGS:
        for code in recorded(training)[1]:
            having.setdefault(code, []).append(training)
    for code, count in recorded(name)[1].items():
        turn, among = _turn(code), having[code]
        entries = set()
        if among[turn % len(among)] == name:
            entries.add(1)
        if name_of(code).startswith(_OUTER) and among[(turn + 1) % len(among)] == name:
            entries.add(_last(code, count))
        if code not in LAST_LINES:
            yield from ((code, nth, error) for nth in sorted(entries) for error in _kinds(code))


def everything(name: str) -> Iterator[Point]:
    """Every function that runs in a training, its first and its last entry."""
    for code, count in recorded(name)[1].items():
        if code not in LAST_LINES:
            for nth in sorted({1, _last(code, count)}):
                yield from ((code, nth, error) for error in _kinds(code))


def interrupts(name: str) -> Iterator[Point]:
    """Every function that runs in a training, where the user's Ctrl-C comes at one of its entries.

    That is by turns the first and the last.
    """
    for code, count in recorded(name)[1].items():
        yield code, (1, _last(code, count))[_turn(code) % 2], KeyboardInterrupt()


def survey(name: str, points: Iterator[Point]) -> dict[str, list[str]]:
    """Makes the points fail one by one, and says what is wrong; tells of each as it goes."""
    found, begun = {}, time.perf_counter()
    for number, (code, nth, error) in enumerate(points, 1):
        point = f"{name_of(code)}#{nth} {type(error).__name__}"
        problems = problems_with(name, code, nth, error, name_of(code).startswith(_OUTER))
        seconds = time.perf_counter() - begun
        print(f"{seconds:6.0f} s {number:4} {name}: {point}: {problems or 'ok'}", flush=True)
        if problems:
            found[point] = problems
    return found


if __name__ == "__main__":
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    chosen = {"all": everything, "interrupts": interrupts}.get(sys.argv[-1], rotation)
    wrong = survey(sys.argv[1], chosen(sys.argv[1]))
    print(f"{len(wrong)} points are not survived", *wrong, sep="\n")
    sys.exit(bool(wrong))
