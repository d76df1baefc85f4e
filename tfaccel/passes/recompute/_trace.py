"""Tracing a part of a model as a function of tensors and of nothing else."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.compat.patching import instance_attributes

# Computes a part's outputs (in any structure) from its input tensors.
Run = Callable[[list[tf.Tensor]], Any]
# Ops whose first input has a sparse gradient, and ops through which it is still that input.
_GATHERS = ("GatherV2", "ResourceGather")
_SAME_VALUES = ("Identity", "Cast", "StopGradient")
# What a part may return beside tensors: it is the same in every run.
_PLAIN = (bool, int, float, str, type(None))


class NotPureError(Exception):
    """A part may give another result the second time, so it has to run as it is written."""


class State:
    """The variables that layers use, metrics' and seed generators' too, as values for a part."""

    def __init__(self, layers: Sequence[keras.layers.Layer]):
        self.layers = [inner for one in layers for inner in keras_private.flatten_layers(one)]
        found = (v for one in layers for v in (*one.variables, *one.metrics_variables))
        # TensorFlow's values, read now: inside a 16-bit layer Keras would cast them.
        self._reference = {id(v): (v, v.value) for v in found}

    @classmethod
    def joined(cls, states: Sequence["State"]) -> "State":
        """The state of several parts together."""
        whole = cls([])
        whole.layers = list({id(layer): layer for s in states for layer in s.layers}.values())
        for state in states:
            whole._reference.update(state._reference)
        return whole

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables, once each."""
        return [variable for variable, _ in self._reference.values()]

    def obstacle(self) -> str:
        """Why the layers can't be run twice, as far as it is known before a run."""
        for layer in self.layers:
            if not layer.built:
                return f"layer {layer.name!r} is not built"
            if isinstance(layer, keras.layers.Embedding):
                return f"layer {layer.name!r} has a sparse gradient"
        return ""

    def specs(self) -> list[tf.TensorSpec]:
        """The shapes and dtypes of `values()`."""
        return [tf.TensorSpec(native.shape, native.dtype) for _, native in self._reference.values()]

    def values(self) -> list[tf.Tensor]:
        """What the variables hold now. A tape that watches them sees these reads."""
        return [tf.convert_to_tensor(native) for _, native in self._reference.values()]


class _Scope(keras.StatelessScope):
    """Variables read as given values; what is assigned to them is noted and not done.

    No gradient flows through an assignment, as none does through a real one.
    """

    def __init__(self, variables: Sequence[keras.Variable], values: Sequence[tf.Tensor]):
        super().__init__(initialize_variables=False)
        # Given to the base class, they would be cast to the dtype of whatever layer runs.
        ids = (id(variable) for variable in variables)
        self.state_mapping.update(zip(ids, values, strict=True))
        self.updates: dict[int, tuple[keras.Variable, tf.Tensor]] = {}

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        variable, value = update
        value = tf.stop_gradient(value)
        self.updates[id(variable)] = variable, value
        super().add_update((variable, value))


def _added_to(
    losses: list[tuple[keras.layers.Layer, tf.Tensor]], layers: Sequence[keras.layers.Layer]
) -> contextlib.AbstractContextManager[None]:
    """A block in which the losses that layers add go to a list, with the layer, alone."""

    def adder(layer: keras.layers.Layer) -> Callable[[Any], None]:
        return lambda loss: losses.extend((layer, x) for x in keras.tree.flatten(loss))

    return instance_attributes((layer, "add_loss", adder(layer)) for layer in layers)


class Part:
    """A part of a model, traced as a pure function.

    Keras's `StatelessScope` hands the part its variables (seed generators too) as values, and
    collects what it assigns. `run` is run once, here; `NotPureError` if a second run would give
    others.

    Attributes:
        function: takes the inputs, then their masks, then the variables' values; gives
            the values that gradients flow into, then all others.
        arguments: the inputs and masks to call it with.
        outputs: the part's outputs, flat, with the traced function's tensors.
        losses: the layers that added losses, and the losses.
        updates: the variables that were assigned to, and their new values.
        flowing: how many of the results gradients flow into.
    """

    def __init__(self, run: Run, inputs: Sequence[tf.Tensor], state: State):
        if obstacle := state.obstacle():
            raise NotPureError(obstacle)
        self._state = state
        self._masks = [keras_private.mask_of(x) for x in inputs]
        self.arguments = [*inputs, *(mask for mask in self._masks if mask is not None)]
        self.outputs: list[Any] = []
        self.losses: list[tuple[keras.layers.Layer, tf.Tensor]] = []
        self.updates: list[tuple[keras.Variable, tf.Tensor]] = []
        self._results: list[tf.Tensor] = []
        self.flowing = 0
        self.function = self._traced(run)
        self._check_purity()

    def _traced(self, run: Run) -> Any:
        def pure(*flat: tf.Tensor) -> list[tf.Tensor]:
            inputs, rest = list(flat[: len(self._masks)]), iter(flat[len(self._masks) :])
            for x, mask in zip(inputs, self._masks, strict=True):
                if mask is not None:
                    keras_private.set_mask(x, next(rest))
            with (
                _Scope(self._state.variables, list(rest)) as scope,
                _added_to(self.losses, self._state.layers),
            ):
                self.outputs = keras.tree.flatten(run(inputs))
            self.updates = list(scope.updates.values())
            self._arrange()
            return self._results

        specs = [tf.TensorSpec(x.shape, x.dtype) for x in self.arguments]
        specs += self._state.specs()
        try:
            return tf.function(pure, autograph=False).get_concrete_function(*specs)
        except Exception as error:  # a user's mistake shows again when the part runs as written
            raise NotPureError(str(error)) from error

    def _arrange(self) -> None:
        """Orders all tensors that are needed outside of the part, once each."""
        self._check_leaves()
        tensors = [leaf for leaf in self.outputs if isinstance(leaf, tf.Tensor)]
        masks = [mask for x in tensors if (mask := keras_private.mask_of(x)) is not None]
        wanted = [*(x for x in tensors if is_float(x)), *(loss for _, loss in self.losses)]
        flowing = {id(x): x for x in wanted}
        others = [*tensors, *masks, *(value for _, value in self.updates)]
        self.flowing = len(flowing)
        if not flowing:
            raise NotPureError("no gradient flows through it")
        self._results = list((flowing | {id(x): x for x in others}).values())

    def _check_leaves(self) -> None:
        known = {id(variable) for variable in self._state.variables}
        for variable, _ in self.updates:
            if id(variable) not in known:
                raise NotPureError(f"it changes {variable.path}, no variable of its layers")
            if variable.trainable:
                raise NotPureError(f"it changes {variable.path}, which is trained")
        for leaf in self.outputs:
            if not isinstance(leaf, (tf.Tensor, *_PLAIN)):
                raise NotPureError(f"it returns a {type(leaf).__name__}")

    def _check_purity(self) -> None:
        """Raises unless the function's results depend on its arguments alone."""
        graph = self.function.graph
        for outside, _ in graph.captures:
            if outside.dtype == tf.resource:
                raise NotPureError("it uses a variable, generator or table Keras does not track")
            if tf.is_symbolic_tensor(outside):
                raise NotPureError(f"it reads {outside.name}, which is no input of it")
        values = graph.inputs[len(self.arguments) :]
        pairs = zip(values, self._state.variables, strict=False)  # captures are at the end
        trained = {id(value) for value, variable in pairs if variable.trainable}
        for op in graph.get_operations():
            if op.op_def is not None and op.op_def.is_stateful:
                raise NotPureError(f"its op {op.name} ({op.type}) is stateful")
            if op.type in _GATHERS and id(_source(op.inputs[0])) in trained:
                raise NotPureError(f"its op {op.name} has a sparse gradient")

    def outside(self, results: Sequence[tf.Tensor]) -> Callable[[tf.Tensor], tf.Tensor]:
        """Gives, for each of the traced tensors, what one call of the function made of it."""
        found = {id(inner): outer for inner, outer in zip(self._results, results, strict=True)}
        return lambda inner: found[id(inner)]


def _source(tensor: tf.Tensor) -> tf.Tensor:
    while tensor.op.type in _SAME_VALUES:
        tensor = tensor.op.inputs[0]
    return tensor


def is_float(tensor: tf.Tensor) -> bool:
    """Whether gradients flow through a tensor of this type."""
    return tensor.dtype.is_floating or tensor.dtype.is_complex
