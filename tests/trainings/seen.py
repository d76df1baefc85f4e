"""A training as an onlooker sees it: numbers, callbacks, marks on the model, files, warnings."""

import collections
import contextlib
import dataclasses
import pathlib
import threading
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import tfaccel
from tfaccel.compat.keras_private import flatten_layers
from tfaccel.launch.every_fit import every_fit
from trainings.common import Training

_PLAIN = (bool, int, float, str, type(None))
# Whether a layer was ever called, which bars one from adding "call-context args": a recurrent
# layer's plan runs in place of its cell.
_OF_NO_MATTER = {"_called"}
MakeAccel = Callable[[], tfaccel.AccelCallback]


class Epochs(keras.callbacks.Callback):
    """Notes the events of a fit but those of batches, with their logs and the steps so far."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def _note(self, name: str, logs: Any, *place: Any) -> None:
        optimizer = getattr(self.model, "optimizer", None)
        made = None if optimizer is None else int(optimizer.iterations)
        self.events.append((name, *place, sorted(logs or {}), made))

    def on_train_begin(self, logs: Any = None) -> None:
        self._note("train begins", logs, dict(self.params or {}))

    def on_train_end(self, logs: Any = None) -> None:
        self._note("train ends", logs, self.model.stop_training)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._note("epoch begins", logs, epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._note("epoch ends", logs, epoch)

    def on_test_begin(self, logs: Any = None) -> None:
        self._note("test begins", logs)

    def on_test_end(self, logs: Any = None) -> None:
        self._note("test ends", logs)

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        self._note("test batch ends", logs, batch)


class Batches(Epochs):
    """Notes those of batches, too. No plan may have several steps in one call then."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._note("batch begins", logs, batch)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._note("batch ends", logs, batch)


@dataclasses.dataclass
class Seen:
    """What a training was seen to do.

    Attributes:
        numbers: losses and metrics by name, for each History.
        weights: of all models, their optimizers' state included.
        events: of each fit, in the order in which the fits began.
        marks: attributes of models, layers and optimizers, with the values that are plain.
        files: below its folder.
        warnings: those of others, once each.
        own_warnings: tfaccel's.
        plans: of each fit, those that ran at its end.
        notes: why a plan is the baseline.
        trials: outcomes of what was tried.
        failed: what failed of it, and why.
    """

    numbers: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    weights: list[np.ndarray] = dataclasses.field(default_factory=list)
    events: list[Any] = dataclasses.field(default_factory=list)
    marks: list[Any] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)
    warnings: set[str] = dataclasses.field(default_factory=set)
    own_warnings: list[str] = dataclasses.field(default_factory=list)
    plans: list[tuple[str, ...]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    trials: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failed: list[str] = dataclasses.field(default_factory=list)


class _Beside:
    """A recorder, and AccelCallback where it is asked for, along with one fit."""

    def __init__(self, seen: Seen, recorder: Epochs, accel: tfaccel.AccelCallback | None):
        self._seen, self._accel = seen, accel
        self.callbacks = [recorder] if accel is None else [recorder, accel]

    def end(self, raised: str) -> None:
        if self._accel is None:
            return
        self._seen.plans.append(self._accel.plan.names)
        report = self._accel.report
        if report is not None:
            self._seen.notes.append(report.note)
            self._seen.trials.update(trial.outcome.name for trial in report.trials)
            self._seen.failed += [
                f"{t.plan}: {t.reason}" for t in report.trials if t.outcome.name == "FAILED"
            ]


class _Injected:
    """Hands each fit its callbacks; fits of one model share an AccelCallback, as people have it."""

    def __init__(self, seen: Seen, kind: type[Epochs], make: MakeAccel | None):
        self._seen, self._kind, self._make = seen, kind, make
        self._known: Any = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def begin(self, model: Any, given: Any) -> _Beside:
        recorder, accel = self._kind(), None
        with self._lock:
            self._seen.events.append(recorder.events)
            if self._make is not None:
                accel = self._known.get(model) or self._make()
                self._known[model] = accel
        return _Beside(self._seen, recorder, accel)


def see(
    item: Training,
    folder: pathlib.Path,
    make: MakeAccel | None = None,
    recorder: type[Epochs] = Batches,
) -> Seen:
    """Trains once.

    Args:
        item: the program.
        folder: empty, for its files.
        make: gives the AccelCallback of a model; None for stock Keras.
        recorder: what notes events.
    """
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(3)
    folder.mkdir()
    seen = Seen()
    with warnings.catch_warnings(record=True) as caught, contextlib.ExitStack() as patches:
        warnings.simplefilter("always")
        patches.enter_context(every_fit(_Injected(seen, recorder, make).begin))
        patches.callback(keras.config.set_dtype_policy, keras.config.dtype_policy())
        models, histories = item.run(folder)
    for warning in caught:
        told = str(warning.message)
        if told.startswith("tfaccel"):
            seen.own_warnings.append(told)
        elif not issubclass(warning.category, DeprecationWarning | ResourceWarning):
            seen.warnings.add(told)
    seen.numbers = [getattr(history, "history", history) for history in histories]
    seen.weights = [np.array(v) for model in models for v in _variables(model)]
    seen.marks = [_marks(owner) for model in models for owner in _owners(model)]
    seen.files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return seen


def _optimizers(model: keras.Model) -> list[Any]:
    found = [value for value in vars(model).values() if _is_optimizer(value)]
    return [*found, *(o.inner_optimizer for o in found if hasattr(o, "inner_optimizer"))]


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, keras.optimizers.Optimizer)


def _variables(model: keras.Model) -> list[Any]:
    state = [v for optimizer in _optimizers(model) for v in optimizer.variables]
    # Variables of strings can't be compared as numbers, and none is trained.
    return [v for v in [*model.variables, *state] if v.dtype != "string"]


def _owners(model: keras.Model) -> list[Any]:
    return [model, *flatten_layers(model), *_optimizers(model)]


def _marks(owner: Any) -> tuple[str, dict[str, Any]]:
    """An object's attributes, with their values where these are plain, else with their classes."""
    kept = {}
    for name in vars(owner).keys() - _OF_NO_MATTER:
        value = vars(owner)[name]
        if isinstance(value, _PLAIN):
            kept[name] = value
        else:  # Keras and TensorFlow wrap lists and tuples in classes of their own
            kept[name] = "a list" if isinstance(value, list | tuple) else type(value).__qualname__
    return type(owner).__name__, kept
