"""The phases of an accelerated fit, and which may follow which."""

import enum
from collections.abc import Mapping

# Whether an illegal transition is raised even in a training, as in tests. Otherwise the training
# goes on with the original step, and a notice says so.
RAISES = False


class Phase(enum.Enum):
    """The phases of a fit; `Steps` knows which step runs in each.

    Attributes:
        OBSERVE: the original step runs, timed, and its batches are kept.
        AWAIT_LENGTH: the original step runs until an epoch has shown its length.
        PREDICT: no step runs. The next phase follows from the cache, from what candidates cost
            and save, and from the length of the rest of the training.
        CHECK: no step runs. One candidate is compared with the original step on kept batches.
        RACE: the candidate and the step that ran so far take turns.
        TRIALS: no step runs. Candidates are timed in turns with the original step on kept
            batches, and compared with it.
        RUN: the step of the chosen plan runs, guarded.
        STAY: the original step runs, and its function is given back.
    """

    OBSERVE = "observe"
    AWAIT_LENGTH = "await length"
    PREDICT = "predict"
    CHECK = "check"
    RACE = "race"
    TRIALS = "trials"
    RUN = "run"
    STAY = "stay"


# From a phase to those that may follow, and when they do. STAY is for good.
TRANSITIONS: Mapping[Phase, Mapping[Phase, str]] = {
    Phase.OBSERVE: {
        Phase.PREDICT: "a step's time, its trace's time and kept batches are there",
        Phase.RUN: "a plan is given, or was chosen in an earlier fit of this model or for this "
        "very training, or the original step can't run and a plan can",
        Phase.STAY: "the training can't be accelerated, or has too few steps",
    },
    Phase.AWAIT_LENGTH: {
        Phase.PREDICT: "an epoch has shown its length",
        Phase.STAY: "the fit ended in its first epoch",
    },
    Phase.PREDICT: {
        Phase.AWAIT_LENGTH: "what pays depends on a length that the first epoch will show",
        Phase.CHECK: "a candidate is expected to pay, or the cache has a plan that this process "
        "has not traced",
        Phase.RACE: "an earlier fit has checked a candidate, and ended before it was decided",
        Phase.TRIALS: "candidates are expected to pay, and no step of the training may be one's",
        Phase.RUN: "the cache has a plan whose step an earlier fit has traced, or nothing is "
        "expected to be better than the plan that won",
        Phase.STAY: "nothing is expected to pay, or no step can be repeated",
    },
    Phase.CHECK: {
        Phase.PREDICT: "the plan does not serve here; others may",
        Phase.RACE: "the candidate is faithful",
        Phase.RUN: "the plan of the cache is faithful",
        Phase.STAY: "the comparison failed",
    },
    Phase.RACE: {
        Phase.PREDICT: "it is decided, or the candidate failed beside a plan that had won",
        Phase.STAY: "the candidate failed, and no plan had won",
    },
    Phase.TRIALS: {
        Phase.RUN: "a plan won",
        Phase.STAY: "no plan won",
    },
    Phase.RUN: {
        Phase.PREDICT: "a loop of unknown length has doubled, and more may pay",
        Phase.RUN: "the given plan goes on without what would be compiled for ever more sizes",
        Phase.STAY: "the plan failed, none of it can serve, or it is slower by now",
    },
    Phase.STAY: {},
}


class IllegalTransitionError(RuntimeError):
    """A phase was to follow one that it may not follow."""


class Phases:
    """The phase of a fit, and those before it.

    Attributes:
        path: all phases so far, the present one last.
    """

    def __init__(self) -> None:
        self.path = [Phase.OBSERVE]

    @property
    def now(self) -> Phase:
        """The present phase."""
        return self.path[-1]

    def enter(self, phase: Phase) -> None:
        """Goes on to another phase.

        Raises:
            IllegalTransitionError: that phase may not follow the present one.
        """
        if phase not in TRANSITIONS[self.now]:
            raise IllegalTransitionError(
                f"Phase {phase.name} may not follow {self.now.name}; "
                f"these may: {', '.join(item.name for item in TRANSITIONS[self.now]) or 'none'}."
            )
        self.path.append(phase)
