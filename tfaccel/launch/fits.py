"""The fits of a program under `tfaccel run`: what is added to each, and what became of it."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import keras

from tfaccel.autotune.report import Report
from tfaccel.callbacks.accelerate import AccelCallback
from tfaccel.core.plan import Plan
from tfaccel.core.workload import default_strategy
from tfaccel.launch.closing import Fit, closing
from tfaccel.launch.start import Options
from tfaccel.launch.workers.cluster import is_first, names_several
from tfaccel.launch.workers.kept_fits import kept_at
from tfaccel.system import notices
from tfaccel.system.later import later

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.callbacks import profiler
    from tfaccel.distribute import multi_worker
    from tfaccel.launch import every_batch
    from tfaccel.launch.workers import backup
else:
    backup = later("tfaccel.launch.workers.backup")
    every_batch = later("tfaccel.launch.every_batch")
    multi_worker = later("tfaccel.distribute.multi_worker")
    profiler = later("tfaccel.callbacks.profiler")

_ATTRIBUTE = "_tfaccel_callback"


class Fits:
    """Begins and ends fits, and keeps what the closing table says of each.

    Args:
        options: what is asked of them.
    """

    def __init__(self, options: Options):
        self._options = options
        self.ended: list[Fit] = []
        self._elsewhere = False
        self._backups = 0
        self._batches: weakref.WeakSet[every_batch.Batches] = weakref.WeakSet()

    def begin(self, model: Any, given: Sequence[Any]) -> _Beside | None:
        """What goes along with a fit that has these callbacks; None under other backends."""
        if keras.backend.backend() != "tensorflow":
            self._elsewhere = True
            return None
        added: list[keras.callbacks.Callback] = []
        accel = next((c for c in given if isinstance(c, AccelCallback)), None)
        if accel is None:
            accel = _left_by_last_fit(model) or AccelCallback(
                tuning=self._options.tuning, verbose=int(self._options.verbose)
            )
            added.append(accel)
        added += self._profiler(given)
        added += self._backup(model, given)
        return _Beside(model, accel, added, self.ended)

    def begin_batches(self, model: Any) -> every_batch.Batches | None:
        """What goes along with `train_on_batch` and its like; None under other backends."""
        if keras.backend.backend() != "tensorflow":
            self._elsewhere = True
            return None
        found = every_batch.Batches(model, self._options, self._end_batches)
        self._batches.add(found)
        return found

    def _end_batches(self, batches: every_batch.Batches) -> None:
        self.ended.append(
            Fit(
                model=f"{type(batches.model).__name__}.train_on_batch",
                parameters=_parameters(batches.model),
                steps=batches.steps,
                plan=str(batches.plan),
                speedup=_speedup(batches.plan, batches.report),
                tuning_seconds=batches.report.tuning_seconds,
                note=batches.report.note if batches.plan.is_baseline else "",
            )
        )

    def _profiler(self, given: Sequence[Any]) -> list[keras.callbacks.Callback]:
        """What measures this fit, where that is asked for and the program doesn't."""
        folder = self._folder()
        if folder is None:
            return []
        kind = profiler.ProfilerCallback
        if any(isinstance(c, kind) for c in given):
            return []
        return [kind(folder, verbose=int(self._options.verbose))]

    def _folder(self) -> str | None:
        """Where profiles go: each process has a file of its own."""
        folder, process = self._options.profile, os.getpid()
        if folder is None or process == self._options.process:
            return folder
        return os.path.join(folder, f"process-{process}")

    def _backup(self, model: Any, given: Sequence[Any]) -> list[keras.callbacks.Callback]:
        """What keeps this fit for a restart, where that is asked for and the program doesn't."""
        strategy = getattr(model, "distribute_strategy", None)
        workers = None
        if strategy is not None and strategy is not default_strategy():
            workers = strategy if isinstance(strategy, multi_worker.MultiWorker) else None
        several = workers is not None and workers.num_workers > 1
        first = is_first(os.environ)
        if self._options.launched and names_several(os.environ) and not several and first:
            notices.warn(
                "tfaccel: each worker trains a model of its own, as this one was not made in the "
                "scope of a tfaccel.AccelStrategy."
            )
        folder = self._options.backup_dir
        if folder is None or any(isinstance(c, keras.callbacks.BackupAndRestore) for c in given):
            return []
        self._backups += 1
        if not several and not first:
            return []  # workers that are no cluster: no two may write to one place
        path = kept_at(folder, self._backups - 1)
        return [
            backup.Backup(path, self._options.save_freq or "epoch", workers if several else None)
        ]

    def show(self, added: Mapping[str, str]) -> None:
        """Prints the closing table on standard error; standard output is the program's.

        Args:
            added: what was set in the environment.
        """
        for batches in list(self._batches):
            batches.end()
        notes = [f"{name}={value} was set for this program." for name, value in added.items()]
        if self._elsewhere:
            backend = keras.backend.backend()
            notes.append(f"Keras runs on {backend}: its fits are left as they are.")
        if self._options.profile is not None:
            notes.append(f"`tfaccel report {self._options.profile}` makes a page of the profile.")
        notices.show(closing(self.ended, notes), stderr=True)


fits = Fits


class _Beside:
    """What goes along with one fit."""

    def __init__(
        self,
        model: Any,
        accel: AccelCallback,
        callbacks: Sequence[keras.callbacks.Callback],
        ended: list[Fit],
    ):
        self.callbacks = callbacks
        self._model = model
        self._accel = accel
        self._ended = ended
        self._iterations = _iterations(model)
        self._report = accel.report

    def end(self, raised: str) -> None:
        """Notes what became of the fit, and leaves the callback to the next one of this model."""
        report = self._accel.report
        self._ended.append(
            Fit(
                model=type(self._model).__name__,
                parameters=_parameters(self._model),
                steps=self._steps(),
                plan=str(self._accel.plan),
                speedup=_speedup(self._accel.plan, report),
                tuning_seconds=_spent(self._report, report),
                note=report.note if report is not None and self._accel.plan.is_baseline else "",
                raised=raised,
            )
        )
        if self._accel in self.callbacks and not raised:
            _leave(self._model, self._accel)

    def _steps(self) -> int | None:
        """The updates that the optimizer made in this fit; None where it doesn't count them."""
        after = _iterations(self._model)
        return None if after is None or self._iterations is None else after - self._iterations


def _spent(before: Report | None, after: Report | None) -> float:
    """Seconds that this fit spent on its choice, without those of an earlier fit of the model."""
    if after is None:
        return 0.0
    carried_on = before is not None and before.trials == after.trials
    return after.tuning_seconds - (before.tuning_seconds if before and carried_on else 0.0)


def _iterations(model: Any) -> int | None:
    optimizer = getattr(model, "optimizer", None)
    try:
        return None if optimizer is None else int(optimizer.iterations.numpy())
    except Exception:  # a strategy's variable, or an optimizer of the user's own
        return None


def _parameters(model: Any) -> int | None:
    try:
        return int(model.count_params())
    except Exception:  # not built: its fit ended before the first step
        return None


def _speedup(plan: Plan, report: Report | None) -> float | None:
    """The speedup of the last steps; None for the model's own, and where it is not known."""
    if report is None or plan.is_baseline or not report.gain.pairs:
        return None
    return report.speedup


def _left_by_last_fit(model: Any) -> AccelCallback | None:
    """The callback of the last fit of this compiled model, which knows what was chosen.

    A loop of short fits would choose anew in each. It is an attribute of the model's own train
    function, so that it goes with the model, as what fits leave to fits (`steps/remembered.py`).
    """
    found = getattr(getattr(model, "train_function", None), _ATTRIBUTE, None)
    return found if isinstance(found, AccelCallback) and found.model is model else None


def _leave(model: Any, accel: AccelCallback) -> None:
    with contextlib.suppress(AttributeError, TypeError):  # some take no attribute
        setattr(model.train_function, _ATTRIBUTE, accel)
