"""Observing steps that are traced already, by the state after them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.autotune.comparison import slot_gradients
from tfaccel.autotune.comparison.perturb import move, round_once, round_otherwise, rounded_inputs
from tfaccel.autotune.comparison.step_recorder import Names, jit_compiles, losses_of, randomness_of
from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.apart import norm, update_error
from tfaccel.measure.numerics import TOLERANCES, Observation, relative_error
from tfaccel.steps.replay import kept
from tfaccel.steps.snapshot import Snapshot

# By what factor updates may be further off than gradients where Keras's own update can't be
# repeated: squares of gradients are off twice as far.
_UPDATE_TIMES = 3.0
_BOUND = TOLERANCES["float32"]


def hides_gradients(workload: Workload) -> bool:
    """Whether the state after a step does not show its gradients, so that they are recorded."""
    if workload.strategy is not None or not workload.optimizers:
        return True
    return not all(map(slot_gradients.shows_gradients, _working(workload)))


def _working(workload: Workload) -> list[keras.optimizers.Optimizer]:
    return [optimizer for optimizer in workload.optimizers if optimizer.built]


class TracedObserver:
    """Observes single steps that were traced for training, as `StepRecorder` does its own.

    A recorder traces a step once more, to see its gradients. Here they follow from the
    optimizer's state, and Keras's own update, run eagerly on them, tells what the step should
    have made of them.

    Args:
        workload: the model; `workload.batches[0]` is the batch.
        snapshot: the state to start from. It is left restored.
        steps: gives the traced step of a plan, that of `Plan()` being the original.
    """

    def __init__(
        self,
        workload: Workload,
        snapshot: Snapshot,
        steps: Callable[[Plan], Callable[[Any], Any]],
    ):
        self._workload = workload
        self._snapshot = snapshot
        self._steps = steps
        self._names = Names(workload)
        # What Keras's own update can't be repeated for; None before that is known.
        self._otherwise: frozenset[str] | None = None

    def serves(self, plan: Plan) -> bool:
        """Whether a step under a plan, and the original, show all that is to be compared.

        They do not on several replicas; where the optimizer hides the gradients; and where a
        plan draws other random numbers than the original, as XLA does.
        """
        if hides_gradients(self._workload):
            return False
        return not (self.is_random and self._draws_otherwise(plan))

    @property
    def is_random(self) -> bool:
        """Whether layers of Keras's draw random numbers."""
        return any(map(randomness_of, self._workload.layers))

    def _draws_otherwise(self, plan: Plan) -> bool:
        workload = self._workload
        return jit_compiles(plan, StepContext(workload)) != bool(workload.model.jit_compile)

    def _working(self) -> list[keras.optimizers.Optimizer]:
        return _working(self._workload)

    def observe(self, plan: Plan, reference: Observation | None = None) -> Observation:
        """One step under a plan.

        Args:
            plan: what it was traced under.
            reference: the original step; where given, weights and slots are what the plan's
                update would have made of its gradients.
        """
        before = None if reference is None else reference.before
        seen = self._one(self._steps(plan), self._workload.batches[0], before=before)
        if reference is None:
            return seen
        return self._translated(seen, reference)

    def near(self, dtype: str | None = None, moved: bool = False) -> Observation:
        """The original step with other roundings, as `StepRecorder.near` has them, lightened.

        Its random numbers are the same: they do not differ under a plan that is observed here.
        """
        workload, weights = self._workload, self._names.weights.values()
        batch = workload.batches[0]
        if dtype is not None:
            batch = rounded_inputs(batch, dtype, workload.strategy)

        def perturb() -> None:
            if dtype is None:
                round_otherwise(weights, workload.layers)
            else:
                (move if moved else round_once)(weights, dtype)

        return self._lightly(batch, perturb)

    def other(self) -> Observation | None:
        """The original step on another batch, lightened; None where no other was kept."""
        batches = self._workload.batches
        return self._lightly(batches[1]) if len(batches) > 1 else None

    def _lightly(self, batch: Any, perturb: Callable[[], None] = lambda: None) -> Observation:
        """A step of the original, of whose weights and slots only those are read that are needed.

        To copy all of them takes as long as a step.
        """
        shown = (one for optimizer in self._working() for one in slot_gradients.shown_in(optimizer))
        only = {id(variable) for variable in shown}
        return self._one(self._steps(Plan()), batch, perturb, only=only).lightened()

    def _one(
        self,
        step: Callable[[Any], Any],
        batch: Any,
        perturb: Callable[[], None] = lambda: None,
        before: Mapping[str, np.ndarray] | None = None,
        only: Collection[int] | None = None,
    ) -> Observation:
        workload = self._workload
        iterator = iter(kept((batch,), workload.element_spec, workload.strategy))
        try:
            self._start(perturb)
            before = self._names.trained(only) if before is None else before
            state_before = self._names.state()
            logs = step(iterator)
            trained = self._names.trained(only)
            return Observation(
                losses=losses_of(logs),
                gradients=self._gradients(before, trained),
                trained=trained,
                before=before,
                state=self._names.state(),
                state_before=state_before,
                counters=self._names.counters(),
            )
        finally:
            self._snapshot.restore()

    def _start(self, perturb: Callable[[], None] = lambda: None) -> None:
        self._snapshot.restore()
        self._workload.model.reset_metrics()
        for optimizer in self._working():
            slot_gradients.make_visible(optimizer)
        perturb()

    def _gradients(
        self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
    ) -> dict[str, np.ndarray]:
        ids = self._names.trained_ids()
        old, new = ({ids[k]: v for k, v in values.items()} for values in (before, after))
        return {
            self._names.of(variable): gradient
            for optimizer in self._working()
            for variable, gradient in slot_gradients.gradients(optimizer, old, new)
        }

    def _translated(self, seen: Observation, reference: Observation) -> Observation:
        """An observation, its update moved to the reference's gradients, to be compared.

        Keras treats an embedding's sparse gradient differently from the sum that the state
        shows, so that update can't be repeated and is compared as gradients are.
        """
        expected = self._updated(seen.gradients)
        trained = dict(seen.trained)
        apart = [name for name in trained if not self._is_update(name, seen, expected)]
        free = self._unrepeated(reference) if apart else frozenset()
        for name, value in reference.trained.items():
            if name not in free:
                trained[name] = value + _as_large(expected[name], value) * (
                    seen.trained[name] - expected[name]
                )
            elif _apart(value, trained[name], reference.before[name]) <= self._free(
                name, seen, reference
            ):
                trained[name] = value
        return dataclasses.replace(seen, trained=trained)

    def _unrepeated(self, reference: Observation) -> frozenset[str]:
        """The names of values that Keras's own update of the original's gradients misses."""
        if self._otherwise is None:
            again = self._updated(reference.gradients)
            self._otherwise = frozenset(
                name for name in reference.trained if not self._is_update(name, reference, again)
            )
        return self._otherwise

    @staticmethod
    def _is_update(name: str, seen: Observation, update: Mapping[str, np.ndarray]) -> bool:
        """Whether a step left what an update makes of its gradients."""
        return _apart(seen.trained[name], update[name], seen.before[name]) <= _BOUND.update

    def _free(self, name: str, seen: Observation, reference: Observation) -> float:
        """How far an update that can't be repeated may be off."""
        owner = self._names.owner(name)
        right = reference.gradients.get(owner)
        error = 0.0 if right is None else relative_error(right, seen.gradients[owner])
        return _UPDATE_TIMES * max(_BOUND.variable, error)

    def _updated(self, gradients: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The values after Keras's own update by gradients, run eagerly from the snapshot."""
        try:
            self._start()
            for optimizer in self._working():
                variables = keras_private.trained_variables(optimizer)
                values = [tf.cast(gradients[self._names.of(v)], v.dtype) for v in variables]
                optimizer.apply(values, variables)
            return self._names.trained()
        finally:
            self._snapshot.restore()


def _apart(value: np.ndarray, other: np.ndarray, before: np.ndarray) -> float:
    """How far two new values are, relative to the value or, if larger, to its change."""
    return update_error(value, before, other, before)


def _as_large(value: np.ndarray, reference: np.ndarray) -> float:
    """The factor that scales an error to the reference's size, where that is smaller.

    A gradient that is zero by construction is rounding, of which 16 bits make more.
    """
    own, right = norm(value), norm(reference)
    return min(1.0, right / own) if own else 1.0
