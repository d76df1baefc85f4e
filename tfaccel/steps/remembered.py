"""What a fit of a compiled model leaves to later fits, under any callback."""

import contextlib
import dataclasses
import weakref
from typing import Any

import keras

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.measure.racing import Race
from tfaccel.steps.compiled_step import BuiltStep, StepFunction

_ATTRIBUTE = "_tfaccel_memory"
# Traced steps that are kept for one compiled model; each holds a graph.
_MOST_STEPS = 4


@dataclasses.dataclass(frozen=True)
class TracedStep:
    """A step that was traced under a plan for data of this spec, and has run.

    `prepared` is what the plan's passes had found out before.
    """

    plan: Plan
    element_spec: Any
    built: BuiltStep
    prepared: Prepared


@dataclasses.dataclass(frozen=True)
class TooShort:
    """What an earlier fit knew, which was too short for any trial.

    The passes that were considered, whether a callback acted at every batch (which some refuse),
    the spec of its data, the seconds of the cheapest trial (None where no pass serves the model),
    those of a step, and of a first step with its trace.
    """

    names: tuple[str, ...]
    is_watched: bool
    element_spec: Any
    least: float | None
    step_seconds: float
    trace_seconds: float


@dataclasses.dataclass(frozen=True)
class Pending:
    """A checked candidate whose race was undecided when a fit ended.

    Attributes:
        element_spec: of the data.
        trial: its check.
        race: what was measured so far.
        trials: what was tried before.
    """

    element_spec: Any
    trial: Any
    race: Race
    trials: tuple[Any, ...]


class Memory:
    """Lives as long as the user's own train function, which `compile` makes anew.

    It is an attribute of that function, so it lives as long as the compiled model. After
    `keras.utils.clear_session()` it begins afresh. `trace_seconds` is the longest first step so far
    (0.0: none was timed), `work` how much a step computes, by what it was counted for, `specs` the
    batch that it was last traced for (False) and that XLA last compiled it for (True).
    """

    def __init__(self, model: keras.Model, era: int):
        self.trace_seconds = 0.0
        self.work: dict[Any, Any] = {}
        self.specs: dict[bool, Any] = {}
        self._model = weakref.ref(model)
        self._era = era
        self._steps: list[TracedStep] = []
        self._too_short: TooShort | None = None
        self._pending: Pending | None = None

    @classmethod
    def of(cls, model: keras.Model, train_function: StepFunction) -> "Memory":
        """The memory of a compiled model and its own train function; a fresh one if need be."""
        era = _era()
        found = getattr(train_function, _ATTRIBUTE, None)
        if not isinstance(found, cls) or found._model() is not model or found._era != era:
            found = cls(model, era)
            # A user's own function may take no attributes: then nothing is remembered.
            with contextlib.suppress(AttributeError, TypeError):
                setattr(train_function, _ATTRIBUTE, found)
        return found

    def step(self, plan: Plan, element_spec: Any) -> TracedStep | None:
        """The step that was traced under a plan for such data; None where there is none."""
        kept = (k for k in self._steps if k.plan == plan and k.element_spec == element_spec)
        return next(kept, None)

    def keep(self, step: TracedStep) -> None:
        """Keeps a step that ran, in place of the oldest where there are many."""
        self.drop(step.plan, step.element_spec)
        self._steps = [*self._steps, step][-_MOST_STEPS:]

    def drop(self, plan: Plan, element_spec: Any) -> None:
        """Forgets a step: it failed, or another takes its place."""
        known = self.step(plan, element_spec)
        self._steps = [kept for kept in self._steps if kept is not known]

    def note_pending(self, pending: Pending) -> None:
        """Notes the undecided race of a fit that ended; the candidate's step is kept, too."""
        self._pending = pending

    def pending(self, element_spec: Any) -> Pending | None:
        """The race to go on with, which is handed out once; None where there is none."""
        pending, self._pending = self._pending, None
        if pending is None or pending.element_spec != element_spec:
            return None
        return pending if self.step(pending.trial.plan, element_spec) else None

    def note_trace(self, seconds: float) -> None:
        """A first step took so long."""
        self.trace_seconds = max(self.trace_seconds, seconds)

    @property
    def was_too_short(self) -> bool:
        """Whether nothing could pay in a fit before."""
        return self._too_short is not None

    def note_too_short(self, known: TooShort) -> None:
        """Notes a fit in which nothing could pay."""
        self._too_short = known

    def too_short(
        self, names: tuple[str, ...], is_watched: bool, element_spec: Any
    ) -> TooShort | None:
        """What is known of fits with such data and settings in which nothing could pay."""
        known = self._too_short
        if known is None or (known.names, known.is_watched) != (names, is_watched):
            return None
        return known if known.element_spec == element_spec else None


class _Eras:
    """Counts how often Keras's session was cleared between two calls."""

    def __init__(self) -> None:
        self.era = self._last = 0

    def __call__(self) -> int:
        # Keras counts names up, and begins anew when its session is cleared.
        number = keras.backend.get_uid(_ATTRIBUTE)
        self.era += number <= self._last
        self._last = number
        return self.era


_era = _Eras()
