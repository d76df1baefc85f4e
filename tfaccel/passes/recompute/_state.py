"""The state of layers, read and assigned to outside of them."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.compat.patching import instance_attribute

# Told about a loss that a layer adds.
OnLoss = Callable[[keras.layers.Layer, tf.Tensor], None]


class State:
    """The variables that layers use, as values that can be handed to a part.

    Args:
        layers: the part's layers. Metrics and seed generators inside them count.
    """

    def __init__(self, layers: Sequence[keras.layers.Layer]):
        self.layers = [inner for one in layers for inner in keras_private.flatten_layers(one)]
        found = (v for one in layers for v in (*one.variables, *one.metrics_variables))
        # Native ones now, as inside a layer with a 16-bit policy Keras would cast them.
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
        """What keeps the layers from being run twice, as far as it is known before a run."""
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


class Scope(keras.StatelessScope):
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


@contextlib.contextmanager
def losses_of(layers: Sequence[keras.layers.Layer], on_loss: OnLoss) -> Iterator[None]:
    """Whatever these layers add to the loss goes to `on_loss`."""
    with contextlib.ExitStack() as stack:
        for layer in layers:

            def add_loss(loss: Any, layer: keras.layers.Layer = layer) -> None:
                for x in keras.tree.flatten(loss):
                    on_loss(layer, x)

            stack.enter_context(instance_attribute(layer, "add_loss", add_loss))
        yield
