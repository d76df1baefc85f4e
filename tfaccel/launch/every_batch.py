"""`train_on_batch` and its like of every model, whoever calls them (`tfaccel run --on_batch`)."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

from tfaccel.autotune.options import make_options
from tfaccel.autotune.report import Report
from tfaccel.compat.keras_private import trainer_class
from tfaccel.compat.patching import class_attribute
from tfaccel.core.plan import Plan
from tfaccel.launch.start import Options
from tfaccel.loops.on_batch import AcceleratedBatches, has_stand_in
from tfaccel.system import notices

_METHODS = ("train_on_batch", "test_on_batch", "predict_on_batch")
# Written past Keras's tracking: it lives as long as the model, and no part of Keras sees it.
_ATTRIBUTE = "_tfaccel_batches"


class Batches:
    """One model's steps on single batches.

    Args:
        model: compiled.
        options: what is asked of them.
        ended: is handed this object once, when the model is gone or the program has ended, if the
            model was trained.

    Attributes:
        model: the same.
        steps: training steps so far.
    """

    def __init__(self, model: Any, options: Options, ended: Callable[["Batches"], None]):
        self.steps = 0
        self.model = model
        settings = make_options("auto", tuning=options.tuning)
        self._step = AcceleratedBatches(model, settings, None, int(options.verbose))
        self._ended = ended
        self._is_told = False
        # Programs may act in several threads; a step stands in for the model's own in one of them.
        self._lock = threading.RLock()

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return self._step.plan

    @property
    def report(self) -> Report:
        """What was found so far."""
        return self._step.report

    @contextlib.contextmanager
    def during(self, method: str) -> Iterator[None]:
        """One call of a method of the model."""
        with self._lock:
            if has_stand_in(self.model, method):  # of the program's own `accelerate_step(model)`
                yield
                return
            with self._step.during(method):
                yield
            self.steps += method == _METHODS[0]

    def end(self) -> None:
        """There are no further steps."""
        if self.steps and not self._is_told:
            self._is_told = True
            self._ended(self)

    def __del__(self) -> None:
        self.end()


def every_batch(begin: Callable[[Any], Batches | None]) -> contextlib.AbstractContextManager[Any]:
    """Asks `begin` once for each compiled model what goes along with its steps on single batches.

    `begin` may raise: then the model's steps go on without, and a warning says so.

    Args:
        begin: gives what goes along; None for nothing.
    """
    trainer, patches = trainer_class(), contextlib.ExitStack()
    for name in _METHODS:
        method = _method(name, getattr(trainer, name), begin)
        patches.enter_context(class_attribute(trainer, name, method))
    return patches


def _method(name: str, original: Any, begin: Callable[[Any], Batches | None]) -> Any:
    @functools.wraps(original)
    def method(model: Any, *args: Any, **kwargs: Any) -> Any:
        beside = _beside(model, begin) if model.compiled else None
        if beside is None:
            return original(model, *args, **kwargs)
        with beside.during(name):
            return original(model, *args, **kwargs)

    return method


def _beside(model: Any, begin: Callable[[Any], Batches | None]) -> Batches | None:
    kept = vars(model)
    if _ATTRIBUTE not in kept:
        kept[_ATTRIBUTE] = None
        try:
            kept[_ATTRIBUTE] = begin(model)
        except Exception as error:
            notices.warn(
                f"tfaccel: {type(model).__name__}.train_on_batch is left as it is: "
                f"{type(error).__name__}: {error}",
                stacklevel=3,
            )
    found: Batches | None = kept[_ATTRIBUTE]
    return found
