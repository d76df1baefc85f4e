"""ProfilerCallback: where a training's time goes."""

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, Literal

import keras

from tfaccel.compat import keras_private
from tfaccel.measure.timing import Clock
from tfaccel.profiling.live import Every
from tfaccel.profiling.profile import Profile
from tfaccel.steps.worker_agreement import agreement_of
from tfaccel.system import notices
from tfaccel.system.arguments import is_positive
from tfaccel.training.step_dispatcher import StepDispatcher


class ProfilerCallback(keras.callbacks.Callback):
    """Measures where a training's time goes, and how much of it acceleration saves.

    Alone it times the steps as they are. Beside an `AccelCallback` (in any order) it
    runs your own step from time to time between the accelerated ones. Both are valid
    training steps, so the speedup is measured side by side, on the same machine and in the
    same minute, and costs only the time by which your own step is slower. Each step is
    waited for, so that a step in a GPU's queue does not count as done.

    Args:
        log_dir: a folder for `profile.jsonl` (see `docs/report.md`), for TensorBoard's
            scalars where `tensorboard` is installed, and for the profiler's traces;
            None to write nothing.
        compare_every: accelerated steps between two of your own; `"auto"` keeps what
            measuring costs below 2 % of the time; None never runs your own step, and
            then training is the same to the last bit.
        update_freq: `"epoch"`, or the number of batches after which a record is written.
        profile_batch: a batch number (from 1), or a pair of the first and last one, to
            trace by the TensorFlow profiler; 0 for none. Under an accelerated plan as
            many of your own steps are traced after them, unless `compare_every` is None.
        verbose: 0 for silence; 1 for a line an epoch and a table at the end.

    Raises:
        ValueError, TypeError: an argument breaks its rule; the message names it.

    Example:

    >>> model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.ones((64, 4)), np.ones((64, 1))
    >>> profiler = tfaccel.ProfilerCallback(verbose=0)
    >>> history = model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[profiler])
    >>> profiler.summary()["steps"]
    16
    """

    def __init__(
        self,
        log_dir: str | os.PathLike[str] | None = None,
        *,
        compare_every: Every = "auto",
        update_freq: Literal["epoch"] | int = "epoch",
        profile_batch: int | tuple[int, int] = 0,
        verbose: int = 1,
        clock: Clock = time.perf_counter,
    ):
        super().__init__()
        _check_counts(compare_every, update_freq)
        self._settings: dict[str, Any] = {
            "log_dir": None if log_dir is None else pathlib.Path(log_dir),
            "compare_every": compare_every,
            "update_freq": None if update_freq == "epoch" else update_freq,
            "profile_batches": _batch_range(profile_batch),
            "verbose": verbose,
            "clock": clock,
        }
        self._profile: Profile | None = None
        self._is_over = False  # whether nothing is to be measured any longer
        self._said_idle = False

    def __getstate__(self) -> dict[str, Any]:
        """The arguments, which are all that a copy has: it takes no part in the original's fit."""
        return vars(self) | {"_profile": None, "_model": None}

    def summary(self) -> dict[str, Any]:
        """What was measured so far, by the keys of the `summary` record (`docs/report.md`).

        Raises:
            RuntimeError: no training has begun.
        """
        if self._profile is None:
            raise RuntimeError("`summary` needs a training: pass this callback to `model.fit`.")
        return self._profile.figures().summary()

    def on_train_begin(self, logs: Any = None) -> None:
        """Starts afresh."""
        self._profile, self._is_over = None, False
        with self._own_work():
            if not keras_private.uses_train_function(self.model):
                return self._stay_idle()
            params = self.params or {}
            self._profile = Profile(
                self.model, params.get("epochs"), params.get("steps"), **self._settings
            )

    @contextlib.contextmanager
    def _own_work(self) -> Iterator[None]:
        """A block after whose failure the training goes on, and is measured no longer."""
        try:
            yield
        except Exception as error:
            self._stop()
            why = f"{type(error).__name__}: {error}"
            notices.warn(f"tfaccel measures this training no longer: {why}", stacklevel=4)

    def _stop(self) -> None:
        """Measures no longer."""
        self._is_over = True
        function = self.model.train_function
        if isinstance(function, StepDispatcher):
            function.watch(None)

    def _running(self) -> Profile | None:
        """What measures this training; None where it is measured no longer, by all of its workers.

        Workers measure together, so one that has failed must not leave the others to wait for it.
        """
        if agreement_of(self.model.distribute_strategy).any(self._is_over) and not self._is_over:
            self._stop()
        return None if self._is_over else self._profile

    def _stay_idle(self) -> None:
        """Says once that steps of a user's own loop can't be measured."""
        if self._settings["verbose"] and not self._said_idle:
            notices.say("\ntfaccel: this loop is not `model.fit`'s, so nothing is measured in it.")
        self._said_idle = True

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Tells the profile that an epoch begins."""
        profile = self._running()
        if profile is not None:
            with self._own_work():
                profile.begin_epoch(epoch)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Closes the epoch's record."""
        profile = self._running()
        if profile is not None:
            with self._own_work():
                profile.end_epoch()

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the train function back and says what was measured."""
        profile = self._running()
        if profile is not None:
            with self._own_work():
                profile.end()


def _check_counts(compare_every: Any, update_freq: Any) -> None:
    if compare_every not in (None, "auto") and not is_positive(compare_every):
        raise ValueError(
            f'`compare_every` must be "auto", None or a positive integer. '
            f"Received: {compare_every!r}"
        )
    if update_freq != "epoch" and not is_positive(update_freq):
        raise ValueError(
            f'`update_freq` must be "epoch" or a positive integer. Received: {update_freq!r}'
        )


def _batch_range(profile_batch: Any) -> tuple[int, int] | None:
    """The first and the last batch to trace, as keras.callbacks.TensorBoard reads the argument."""
    if profile_batch == 0:
        return None
    both = (profile_batch, profile_batch) if isinstance(profile_batch, int) else profile_batch
    if not (
        isinstance(both, tuple | list)
        and len(both) == 2
        and all(map(is_positive, both))
        and both[0] <= both[1]
    ):
        raise ValueError(
            "`profile_batch` must be 0, a positive integer, or a pair of positive integers "
            f"(first, last). Received: {profile_batch!r}"
        )
    return both[0], both[1]
