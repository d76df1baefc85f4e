"""Observing one step: its losses, its gradients, and the state after it."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.autotune.comparison.perturb import move, round_once, round_otherwise, rounded_inputs
from tfaccel.autotune.comparison.tape import Tape
from tfaccel.compat.patching import SharedContext, instance_attribute
from tfaccel.core.looped import Looped, Returned
from tfaccel.core.plan import Plan
from tfaccel.core.replicas import local_values, on_replicas
from tfaccel.core.step_context import Prepared, StepContext
from tfaccel.core.workload import Workload
from tfaccel.measure.numerics import Observation
from tfaccel.steps.snapshot import Snapshot, known_variables

# Attributes by which random layers say how random they are. XLA and other dtypes
# draw other numbers from the same seed, which is no error: these layers let
# everything through in all steps that are compared.
_RANDOMNESS = ("rate", "stddev", "dropout", "recurrent_dropout")


class StepRecorder:
    """Runs single steps of a workload and observes them.

    Every observation starts from the snapshot's state with metrics reset, so two
    of them differ by their plans alone.

    Args:
        workload: the model; `workload.batches[0]` is the batch.
        snapshot: the state to start from. It is left restored.
        prepared: what the plans' passes found out before.
    """

    def __init__(self, workload: Workload, snapshot: Snapshot, prepared: Prepared | None = None):
        self._workload = workload
        self._prepared = Prepared() if prepared is None else prepared
        self._snapshot = snapshot
        self._names = Names(workload)

    def observe(self, plan: Plan, reference: Observation | None = None) -> Observation:
        """One step under `plan`.

        Args:
            plan: what to apply.
            reference: the untouched step; where given, optimizers are handed its
                gradients in place of the plan's own, so that their updates can be
                compared exactly.

        Returns:
            The observation.
        """
        given = {} if reference is None else dict(reference.handed)
        step = self._untouched if plan.is_baseline else self._traced(plan)
        return self._one(step, self._workload.batches[0], given)

    def near(self, dtype: str | None = None, moved: bool = False) -> Observation:
        """The untouched step with other roundings, and other random numbers. Traces nothing.

        Args:
            dtype: 16 bits to which weights and inputs are rounded once; None to move each
                weight by as much as rounding may in its own dtype (`comparison.perturb`).
            moved: whether weights are moved by as much as rounding to `dtype` usually moves them,
                those too that it leaves as they are.
        """
        workload, weights = self._workload, self._names.weights.values()
        batch = workload.batches[0]
        if dtype is not None:
            batch = rounded_inputs(batch, dtype, workload.strategy)

        def perturb() -> None:
            self._snapshot.reseed()
            if dtype is None:
                round_otherwise(weights, workload.layers)
            else:
                (move if moved else round_once)(weights, dtype)

        return self._one(self._untouched, batch, {}, perturb)

    def other(self) -> Observation | None:
        """The untouched step on another batch; None where no other was kept. Traces nothing."""
        batches = self._workload.batches
        return self._one(self._untouched, batches[1], {}) if len(batches) > 1 else None

    @functools.cached_property
    def _untouched(self) -> Callable[..., Any]:
        return self._traced(Plan())

    def _traced(self, plan: Plan) -> Callable[..., Any]:
        """A step under a plan, which is traced at its first call."""
        workload = self._workload
        context = StepContext(workload, prepared=self._prepared)
        tape = Tape(self._names.of)
        under_plan = SharedContext(lambda: _under(plan, context, tape))

        def on_replica(batch: Any, given: Mapping[str, Any]) -> Any:
            tape.start(given)
            with under_plan:
                if isinstance(workload.model, Looped):
                    found = workload.model.step_and(batch, lambda: tape.gradients)
                else:
                    found = workload.model.train_step(batch), tape.gradients
            self._snapshot.include_graph(tf.compat.v1.get_default_graph())
            return found

        @tf.function(jit_compile=jit_compiles(plan, context), autograph=False)
        def step(batch: Any, given: Mapping[str, Any]) -> Any:
            return on_replicas(workload.strategy, on_replica, batch, given)

        return step

    def _one(
        self,
        step: Callable[..., Any],
        batch: Any,
        given: Mapping[str, Any],
        perturb: Callable[[], None] = lambda: None,
    ) -> Observation:
        try:
            with _quiet(self._workload):
                self._snapshot.restore()
                self._workload.model.reset_metrics()
                perturb()
                before = self._names.trained(), self._names.state()
                logs, found = step(batch, given)
                return self._observation(logs, found, *before)
        finally:
            self._snapshot.restore()

    def observe_steps(self, run: Callable[[], Sequence[Any]]) -> Observation:
        """The state after some traced steps; as gradients, what they add to each weight.

        Args:
            run: makes the steps and gives the logs of each, in order.
        """
        try:
            self._snapshot.restore()
            self._workload.model.reset_metrics()
            before = self._names.trained(), self._names.state()
            logs = run()
            losses = {
                f"{name} of step {index}": value
                for index, step in enumerate(logs)
                for name, value in losses_of(step).items()
            }
            return dataclasses.replace(self._observation(logs[-1], {}, *before), losses=losses)
        finally:
            self._snapshot.restore()

    def _observation(
        self, logs: Any, found: Mapping[str, Any], before: Mapping, state_before: Mapping
    ) -> Observation:
        logs = Returned(logs) if self._workload.in_loop else logs
        gradients = {name: _array(value) for name, value in _each(found)}
        trained = self._names.trained()
        if not gradients:
            # A train_step that applies no optimizer: its own updates are compared.
            gradients = {k: v - before[k] for k, v in trained.items() if k in self._names.weights}
        return Observation(
            losses=losses_of(logs),
            gradients=gradients,
            trained=trained,
            before=before,
            state=self._names.state(),
            state_before=state_before,
            counters=self._names.counters(),
            handed=dict(found),
        )


class Names:
    """Stable names for a workload's variables, and their values as arrays."""

    def __init__(self, workload: Workload):
        self._workload = workload
        self.weights = self._named(workload.model.trainable_variables)

    def _named(self, variables: Sequence[Any]) -> dict[str, Any]:
        named: dict[str, Any] = {}
        for variable in variables:
            path = getattr(variable, "path", None) or variable.name
            while path in named:
                path += "'"
            named[path] = variable
        return named

    def of(self, variable: Any) -> str:
        """The name of a trained variable, given as Keras's or as TensorFlow's."""
        for name, known in self.weights.items():
            if variable is known or variable is known.value:
                return name
        return getattr(variable, "path", None) or variable.name

    def owner(self, name: str) -> str:
        """The weight that a name of `trained` belongs to: itself, or that of the slot."""
        owners = [w for w in self.weights if w == name or w.replace("/", "_") in name]
        return max(owners, key=len, default="")

    def trained(self, only: Collection[int] | None = None) -> dict[str, np.ndarray]:
        """The values of weights and of the optimizers' slots; of some by `id`, None for all."""
        named = self._trained().items()
        return {k: _array(v) for k, v in named if only is None or id(v) in only}

    def trained_ids(self) -> dict[str, int]:
        """The `id` of the variable behind each name of `trained`."""
        return {k: id(v) for k, v in self._trained().items()}

    def _trained(self) -> dict[str, Any]:
        slots = [v for o in self._workload.optimizers for v in o.variables]
        named = {**self.weights, **self._named(slots)}
        return {k: v for k, v in named.items() if _is_float(v)}

    def _others(self) -> dict[str, Any]:
        own = {id(v) for v in self.weights.values()}
        model_variables = [v for v in self._workload.model.variables if id(v) not in own]
        return self._named(model_variables)

    def state(self) -> dict[str, np.ndarray]:
        """The values of float variables that no optimizer changes, metrics aside.

        For a loop also variables beside its models, except single numbers, as metrics have them.
        """
        workload = self._workload
        metrics = {id(v) for one in workload.models for m in one.metrics for v in m.variables}
        others = self._others().items()
        found = {k: _array(v) for k, v in others if _is_float(v) and id(v) not in metrics}
        if isinstance(workload.model, Looped):
            for name, resource in workload.model.more_state(workload.batches[0]):
                value = resource.read() if resource.dtypes[0].is_floating else None
                if value is not None and value[0].shape.rank:
                    found[name] = _array(value[0])
        return found

    def counters(self) -> dict[str, np.ndarray]:
        """The values of integer variables."""
        everything = self._named(known_variables(self._workload))
        return {k: _array(v) for k, v in everything.items() if _is_integer(v)}


@contextlib.contextmanager
def _under(plan: Plan, context: StepContext, tape: Tape) -> Iterator[None]:
    """A block in which a step is traced under the plan, and its optimizers are recorded."""
    optimizers = context.workload.optimizers
    with contextlib.ExitStack() as stack:
        inner = {id(getattr(o, "inner_optimizer", None)) for o in optimizers}
        for optimizer in optimizers:
            if id(optimizer) not in inner:
                apply = tape.recording(optimizer)
                stack.enter_context(instance_attribute(optimizer, "apply", apply))
        stack.enter_context(plan.applied(context))
        yield


def _each(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Every replica's value of everything, by name; the first replica has the plain names."""
    for name, value in values.items():
        for index, local in enumerate(local_values(value)):
            yield f"{name}@{index}" if index else name, local


@contextlib.contextmanager
def _quiet(workload: Workload) -> Iterator[None]:
    """A block in which Keras's random layers let everything through."""
    with contextlib.ExitStack() as stack:
        for layer in workload.layers:
            for name in randomness_of(layer):
                stack.enter_context(instance_attribute(layer, name, 0.0))
        yield


def randomness_of(layer: keras.layers.Layer) -> list[str]:
    """The attributes by which a layer of Keras's says how random it is."""
    if not hasattr(layer, "seed_generator"):
        return []
    return [name for name in _RANDOMNESS if isinstance(vars(layer).get(name), float)]


def jit_compiles(plan: Plan, context: StepContext) -> bool:
    """Whether XLA compiles a step under a plan as a whole."""
    with plan.applied(context):
        return bool(context.workload.model.jit_compile)


def losses_of(logs: Any) -> dict[str, np.ndarray]:
    """The logs that are losses: those so called, or all where none is."""
    flat = logs if isinstance(logs, Mapping) else {"loss": logs}
    named = {k: v for k, v in flat.items() if "loss" in k} or flat
    return {k: _array(v) for k, v in _each(named)}


def _array(value: Any) -> np.ndarray:
    native = getattr(value, "value", value) if isinstance(value, keras.Variable) else value
    tensor = tf.convert_to_tensor(native)
    return tf.cast(tensor, tf.float32).numpy() if tensor.dtype == tf.bfloat16 else tensor.numpy()


def _is_float(variable: Any) -> bool:
    return tf.as_dtype(variable.dtype).is_floating


def _is_integer(variable: Any) -> bool:
    return tf.as_dtype(variable.dtype).is_integer
