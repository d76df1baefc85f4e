"""AccelCallback: one line in `model.fit`."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import keras

from tfaccel.autotune.eligibility import ineligibility
from tfaccel.autotune.options import make_options
from tfaccel.autotune.report import Report, show
from tfaccel.compat import keras_private
from tfaccel.core.plan import Pass, Plan
from tfaccel.core.workload import default_strategy
from tfaccel.fit.session import FitSession
from tfaccel.measure.numerics import Tolerance
from tfaccel.measure.timing import Clock
from tfaccel.profiling.input_watch import LEAST_CALLS, InputWatch
from tfaccel.steps.worker_agreement import agreement_of
from tfaccel.system import notices
from tfaccel.system.arguments import one_of
from tfaccel.training.phases import IllegalTransitionError
from tfaccel.training.step_dispatcher import StepDispatcher

_NO_FIT = (
    "This loop is not `model.fit`'s: `train_on_batch` and steps of your own are left as they are; "
    "`tfaccel.accelerate_step` is for those."
)


class AccelCallback(keras.callbacks.Callback):
    """Makes `fit` faster, or leaves it exactly as it was.

    The first steps of `fit` run as they were written and give the times to beat. Earlier
    measurements, on this machine and on others like it, tell which plan is expected to save
    most time in the rest of the training, and whether that is more than its trial costs.
    This plan is traced, and compared with the untouched step on the same batch from the same
    state: losses, gradients, updates, statistics. If it is faithful, the two take turns on
    the real steps of the training until it is clear which is faster. No batch is lost,
    repeated or reordered. The model itself is never changed: its dtype policies,
    `jit_compile`, layers and optimizer are yours during and after training.

    Args:
        plan: `"auto"` to try and choose; `"baseline"` to change nothing; a
            `tfaccel.Plan`, a list of pass names or the path of a saved plan to use
            that without trials.
        includes: names of the passes to consider; None for all built-in ones.
        excludes: names of passes to leave out.
        tolerance: how far gradients may be from the untouched step's: None for the
            defaults of each dtype (see `tfaccel.measure.numerics`), a relative error, or a
            `tfaccel.Tolerance`.
        tuning: how far the search may go. `"quick"` tries plans that are expected to save more
            time than they cost. `"full"` tries every plan that may be faster, on kept batches,
            as `tfaccel.tune` does. `"off"` tries nothing and takes a plan that the cache has for
            this model. None is `"quick"`, or `"full"` where `tuning_share` is None: then the
            training's length does not matter.
        reproducible: whether every step until the choice is to be the untouched one's, bit
            for bit: plans are then raced on kept batches, and the state is put back. The race
            costs its time.
        tuning_share: the share of the estimated remaining training time that a search may
            cost if it wins nothing; None for no such bound.
        max_tuning_seconds: the most seconds that a search may cost.
        cache_dir: the folder for plans that won, which are used again without trials;
            None for `$TFACCEL_CACHE_DIR`, else `~/.cache/tfaccel`; False for none.
        guard: if a loss turns non-finite under an accelerated plan, put back the
            last good state and go on with the untouched step, once.
        verbose: 0 for silence; 1 for a table and the first findings when the choice is made, and
            a sentence on what it saved when the training ends; 2 for all columns, reasons and
            findings.

    Attributes:
        plan: the plan in use; `Plan()` until one is chosen.
        report: the `Report` of the last tuning; None before, and where a plan was given. If
            steps wait for their input, its note says so, and what to change.

    Raises:
        RuntimeError: Keras does not run on the TensorFlow backend.
        TypeError, ValueError: an argument breaks its rule; the message names it.

    Example:

    >>> model = keras.Sequential([keras.layers.Dense(8, activation="relu"), keras.layers.Dense(1)])
    >>> model.compile("adam", "mse")
    >>> x, y = np.ones((64, 4)), np.ones((64, 1))
    >>> accel = tfaccel.AccelCallback(verbose=0)
    >>> history = model.fit(x, y, verbose=0, callbacks=[accel])
    >>> accel.plan.is_baseline  # two steps are too few to pay for a trial
    True
    """

    def __init__(
        self,
        plan: Plan | Sequence[str | Pass] | str | os.PathLike[str] = "auto",
        *,
        includes: Collection[str] | None = None,
        excludes: Collection[str] = (),
        tolerance: Tolerance | float | None = None,
        tuning: str | None = None,
        reproducible: bool = False,
        tuning_share: float | None = 0.3,
        max_tuning_seconds: float = 120.0,
        cache_dir: str | os.PathLike[str] | bool | None = None,
        guard: bool = True,
        verbose: int = 1,
        clock: Clock = time.perf_counter,
    ):
        super().__init__()
        self._settings = make_options(
            plan,
            includes=includes,
            excludes=excludes,
            tolerance=tolerance,
            tuning_share=tuning_share,
            max_tuning_seconds=max_tuning_seconds,
            cache_dir=cache_dir,
            guard=guard,
            clock=clock,
            tuning=tuning,
            reproducible=reproducible,
        )
        self._verbose = one_of("verbose", verbose, (0, 1, 2))
        self._session: FitSession | None = None
        self._watch: InputWatch | None = None
        self._idle: Report | None = None  # in a loop that has no use for this callback
        self._told_after: int | None = None  # steps of this fit

    def __getstate__(self) -> dict[str, Any]:
        """The arguments, which are all that a copy has: it takes no part in the original's fit."""
        return vars(self) | {"_session": None, "_watch": None, "_model": None}

    @property
    def plan(self) -> Plan:
        """The plan in use."""
        return Plan() if self._session is None else self._session.plan

    @property
    def report(self) -> Report | None:
        """What the last tuning found."""
        return self._idle if self._session is None else self._session.report

    @property
    def session(self) -> FitSession | None:
        """The present fit, or the last one; None before any, and in loops other than `fit`."""
        return self._session

    def on_train_begin(self, logs: Any = None) -> None:
        """Takes the place of the model's train function."""
        if self._settings.plan is not None and self._settings.plan.is_baseline:
            return
        self._told_after = None
        earlier, self._session = self._session, None
        with self._own_work():
            if keras_private.uses_train_function(self.model):
                self._begin(earlier)
            else:
                self._stay_idle()

    def _begin(self, earlier: FitSession | None) -> None:
        params = self.params or {}
        self._session = FitSession(
            self.model,
            self._settings,
            params.get("epochs", 1),
            params.get("steps"),
            on_tuning=self._tell_tuning,
            on_report=self._tell,
            callbacks=keras_private.running_callbacks(self.model),
        )
        self._session.start()
        if earlier is None or not self._session.resume(earlier):
            self._session.leave_if_too_few()
        if self._watch is not None:  # an earlier fit broke off, or the list has this callback twice
            self._watch.end()
        self._watch = self._watching()

    @contextlib.contextmanager
    def _own_work(self) -> Iterator[None]:
        """A block whose failure leaves the training as if it had no callback."""
        try:
            yield
        except IllegalTransitionError:  # of tests
            raise
        except Exception as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        watch, self._watch = self._watch, None
        try:
            if watch is not None:
                watch.end()
            if self._session is not None:
                return self._session.give_up(error)
        except IllegalTransitionError:  # of tests
            raise
        except Exception as again:
            error = again
        StepDispatcher.leave(self.model)
        notices.warn(f"tfaccel gave up and left the training as it is: {error}", stacklevel=4)

    def _stay_idle(self) -> None:
        """Does nothing in a loop of the user's own, and says so once."""
        self._session = self._watch = None
        if self._idle is None:
            self._idle = Report((), Plan(), note=_NO_FIT)
            self._tell(self._idle)

    def _watching(self) -> InputWatch | None:
        """Watches how long steps wait for their input, where that can be seen."""
        distributed = self.model.distribute_strategy is not default_strategy()
        short = self._session is not None and self._session.is_at_most(LEAST_CALLS)
        if distributed or short or ineligibility(self.model):
            return None
        function = StepDispatcher.of(self.model)
        if function.is_watched:  # ProfilerCallback says it itself
            return None
        return InputWatch(function, self._settings.clock, self._tell_input)

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Tells the session how far the training is."""
        with self._own_work():
            if self._session is not None:
                self._session.begin_epoch(epoch)
            if self._watch is not None:
                self._watch.begin_epoch()

    def on_test_begin(self, logs: Any = None) -> None:
        """Tells the session that a validation begins."""
        if self._session is not None:
            with self._own_work():
                self._session.begin_validation()
            if self.model.test_function is None:  # tfaccel gave up, and Keras is about to call it
                self.model.make_test_function()

    def on_train_end(self, logs: Any = None) -> None:
        """Gives the train function back."""
        with self._own_work():
            if self._watch is not None:
                self._watch.end()
                self._watch = None
            if self._session is not None:
                self._session.finish()
                self._tell_saving(self._session)

    def _tell_saving(self, session: FitSession) -> None:
        """What the plan saved in this training, by the latest comparisons."""
        report, after = session.report, self._told_after
        steps = 0 if after is None else session.steps_made - after
        if report is None or not report.gain.pairs or session.plan.is_baseline or steps < 1:
            return
        if self._speaks:
            saved = report.saved_seconds(steps) - report.tuning_seconds
            spent = f"{report.tuning_seconds:.1f} s of tuning and tracing"
            told = f"saved about {saved:.1f} s after" if saved > 0 else "did not make up for"
            notices.say(
                f"\ntfaccel: {steps:,} steps under the plan were {report.gain} as fast as yours, "
                f"which {told} {spent}."
            )

    @property
    def _speaks(self) -> bool:
        """Whether this process prints: of several workers one does."""
        if self.model is None:
            return bool(self._verbose)
        return bool(self._verbose) and agreement_of(self.model.distribute_strategy).is_chief

    def _tell_tuning(self, seconds: float) -> None:
        if self._speaks:
            notices.say(
                f"\ntfaccel: trying accelerations on your batches, for {seconds:.0f} s at most"
            )

    def _tell(self, report: Report) -> None:
        self._told_after = 0 if self._session is None else self._session.steps_made
        if self._speaks:
            show(report, self._verbose)

    def _tell_input(self, said: str) -> None:
        """Says that the input is the bottleneck, and adds it to the report's note."""
        session = self._session
        if session is not None and session.report is not None:
            note = f"{session.report.note} {said}".strip()
            session.report = dataclasses.replace(session.report, note=note)
        if self._speaks:
            notices.say(f"\ntfaccel: {said}")
