"""The user's arguments, validated once."""

import dataclasses
import functools
import os
import time
from collections.abc import Collection, Sequence

import keras

from tfaccel.autotune.budget import Budget
from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.core.plan import Pass, Plan, as_plan
from tfaccel.measure.numerics import Tolerance, as_tolerance
from tfaccel.measure.timing import Clock
from tfaccel.system.later import later

TYPE_CHECKING = False  # see tfaccel/system/later.py
if TYPE_CHECKING:
    from tfaccel.autotune import priors
else:
    priors = later("tfaccel.autotune.priors")

# Baseline steps that are timed and whose batches are kept. The first is traced, the
# second still fills caches.
COLLECTED_STEPS = 3
# How far a search may go: to plans of the cache; to plans that are expected to pay; to all plans
# that may be faster.
TUNING = ("off", "quick", "full")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        plan: a plan to use without tuning; None to tune.
        includes, excludes: names of passes, as the user gave them.
        tolerance: bounds on drift; None for the table's.
        budget: what tuning may cost.
        cache: plans that won before; None for none.
        guard: whether to watch for losses that turn non-finite.
        clock: seconds.
        tuning: how far a search may go.
        reproducible: whether every step until the choice must be the original's.
        may_save_memory: whether passes may be added to a plan that runs out of memory.
    """

    plan: Plan | None
    includes: tuple[str, ...] | None
    excludes: tuple[str, ...]
    tolerance: Tolerance | float | None
    budget: Budget
    cache: PlanCache | None
    guard: bool
    clock: Clock
    tuning: str = "quick"
    reproducible: bool = False
    may_save_memory: bool = True

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The passes to consider when tuning."""
        return priors.pass_names(self.includes, self.excludes)

    @functools.cached_property
    def reserve(self) -> tuple[str, ...]:
        """The passes to add to a plan that runs out of memory."""
        if not self.may_save_memory:
            return ()
        return priors.reserve_names(self.includes, self.excludes)

    @property
    def considered(self) -> tuple[str, ...]:
        """The passes that may be part of the plan that wins."""
        return (*self.names, *(name for name in self.reserve if name not in self.names))


def make_options(
    plan: Plan | Sequence[str | Pass] | str | os.PathLike[str],
    *,
    includes: Collection[str] | None = None,
    excludes: Collection[str] = (),
    tolerance: Tolerance | float | None = None,
    tuning_share: float | None = 0.3,
    max_tuning_seconds: float = 120.0,
    cache_dir: str | os.PathLike[str] | bool | None = None,
    guard: bool = True,
    clock: Clock = time.perf_counter,
    tuning: str | None = None,
    reproducible: bool = False,
) -> Options:
    """Checks the arguments that `AccelCallback`, `tune` and `accelerate` share.

    Raises:
        RuntimeError: Keras does not run on the TensorFlow backend.
        TypeError, ValueError: an argument breaks its rule; the message names it.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            "tfaccel accelerates Keras on the TensorFlow backend. "
            f"Received: KERAS_BACKEND={keras.backend.backend()!r}; set it to 'tensorflow'."
        )
    as_tolerance(tolerance, "float32")
    tuning = tuning or ("full" if tuning_share is None else "quick")
    if tuning not in TUNING:
        raise ValueError(f"`tuning` must be one of {', '.join(TUNING)}. Received: {tuning!r}")
    for name, value in (("reproducible", reproducible), ("guard", guard)):
        if not isinstance(value, bool):
            raise TypeError(f"`{name}` must be True or False. Received: {value!r}")
    if includes is not None or excludes != ():
        priors.pass_names(includes, excludes)  # says which name is none
    return Options(
        plan=None if isinstance(plan, str) and plan == "auto" else as_plan(plan),
        includes=None if includes is None else tuple(includes),
        excludes=tuple(excludes),
        tolerance=tolerance,
        budget=Budget(tuning_share, max_tuning_seconds),
        cache=_cache(cache_dir),
        guard=guard,
        clock=clock,
        tuning=tuning,
        reproducible=reproducible,
    )


def _cache(cache_dir: str | os.PathLike[str] | bool | None) -> PlanCache | None:
    if cache_dir is False:
        return None
    if not isinstance(cache_dir, str | os.PathLike | None):
        raise TypeError(
            f"`cache_dir` must be a path, None for the default, or False. Received: {cache_dir!r}"
        )
    return PlanCache(cache_dir)
