"""Tracing a part of a model as a function of tensors and of nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.passes.recompute._state import Scope, State, losses_of

# Computes a part's outputs (in any structure) from its input tensors.
Run = Callable[[list[tf.Tensor]], Any]
# Ops whose first input has a sparse gradient, and ops through which it is still that input.
_GATHERS = ("GatherV2", "ResourceGather")
_SAME_VALUES = ("Identity", "Cast", "StopGradient")
# What a part may return beside tensors: it is the same in every run.
_PLAIN = (bool, int, float, str, type(None))


class NotPureError(Exception):
    """A part can't be run twice with the same result; it has to run as it is written."""


class Part:
    """A part of a model, traced as a pure function.

    Keras's `StatelessScope` hands the part its variables (seed generators too) as
    values, and collects what it assigns.

    Args:
        run: the part. It is run once, here.
        inputs: what it reads, beside the variables.
        state: the variables of its layers.

    Raises:
        NotPureError: the part would not give the same results in a second run.

    Attributes:
        function: takes `inputs`, then their masks, then the variables' values; gives
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
                Scope(self._state.variables, list(rest)) as scope,
                losses_of(self._state.layers, lambda *loss: self.losses.append(loss)),
            ):
                self.outputs = keras.tree.flatten(run(inputs))
            self.updates = list(scope.updates.values())
            self._arrange()
            return self._results

        specs = [tf.TensorSpec(x.shape, x.dtype) for x in self.arguments]
        specs += self._state.specs()
        try:
            return tf.function(pure, autograph=False).get_concrete_function(*specs)
        except Exception as error:  # a mistake of the user's is met again, as it is written
            raise NotPureError(str(error)) from error

    def _arrange(self) -> None:
        """Puts all tensors that the outside needs in order, once each."""
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
