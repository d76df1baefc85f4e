"""In a process of a sweep: times the steps of the program's first fit, and ends the process."""

import dataclasses
import itertools
import json
import os
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras

from tfaccel.launch.start import Options
from tfaccel.measure.timing import Clock
from tfaccel.system.json_files import replace_text

# The first call is traced, by Keras twice where it makes variables; then caches fill.
WARM_UP_CALLS = 3
CALLS = 20
LEAST_CALLS = 3
# Fewer calls will do where they take long.
ENOUGH_SECONDS = 10.0

Tell = Callable[[float], None]


class StepWatch(keras.callbacks.Callback):
    """Times calls of the train function from end to end, input and callbacks included.

    Args:
        tell: handed the median seconds, once, when enough calls were timed, or when a fit
            ends with a few.
        clock: gives seconds.
    """

    def __init__(self, tell: Tell, clock: Clock = time.perf_counter):
        super().__init__()
        self._tell = tell
        self._clock = clock
        self._ends: list[float] = []

    def on_train_begin(self, logs: Any = None) -> None:
        """A fit that was too short to tell anything is left behind."""
        self._ends = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """A call is done: by now Keras has read its logs, so no device works on it any more."""
        self._ends.append(self._clock())
        timed = self._ends[WARM_UP_CALLS - 1 :]
        calls = len(timed) - 1
        long = calls >= LEAST_CALLS and timed[-1] - timed[0] >= ENOUGH_SECONDS
        if calls >= CALLS or long:
            self._say()

    def on_train_end(self, logs: Any = None) -> None:
        """A fit that was shorter than that may still tell something."""
        if len(self._ends) - WARM_UP_CALLS >= LEAST_CALLS:
            self._say()

    def _say(self) -> None:
        timed = self._ends[WARM_UP_CALLS - 1 :]
        pairs = itertools.pairwise(timed)
        self._tell(statistics.median(end - start for start, end in pairs))


@dataclasses.dataclass(frozen=True)
class _Beside:
    callbacks: Sequence[keras.callbacks.Callback]

    def end(self, raised: str) -> None:
        """Nothing is kept of a fit."""


class Measured:
    """Adds the watch to every fit.

    Args:
        options: with the file to write.
    """

    def __init__(self, options: Options):
        self._path = pathlib.Path(options.measure_into or os.devnull)

    def begin(self, model: Any, given: Sequence[Any]) -> _Beside:
        """What goes along with a fit."""
        return _Beside([StepWatch(lambda seconds: self._tell(seconds, model))])

    def show(self, added: Mapping[str, str]) -> None:
        """The program has ended before enough steps: whoever waits for the file says so."""

    def _tell(self, seconds: float, model: Any) -> None:
        compiles = bool(getattr(model, "jit_compile", False))
        told = {"step_seconds": seconds, "compiles": compiles}
        replace_text(self._path, json.dumps(told))
        # Not by an exception: the program may catch it, save a model or print in between.
        os._exit(0)


fits = Measured
