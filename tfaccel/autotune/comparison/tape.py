"""Notes the gradients that optimizers are handed in a step, while it is traced."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.replicas import replica_id


class Tape:
    """Notes the gradients that optimizers are handed on each replica, and hands on others.

    Replicas are traced in threads that take turns, so each has its own notes.

    Args:
        name_of: the name of a trained variable.
    """

    def __init__(self, name_of: Callable[[Any], str]):
        self._name_of = name_of
        self._gradients: dict[int, dict[str, Any]] = {}
        self._given: dict[int, Mapping[str, Any]] = {}

    def start(self, given: Mapping[str, Any]) -> None:
        """Begins a replica's step; `given` are the gradients to hand on in place of its own."""
        self._gradients[replica_id()], self._given[replica_id()] = {}, given

    @property
    def gradients(self) -> dict[str, Any]:
        """The gradients that this replica's optimizers were handed.

        Those within a branch or a loop (`tf.cond`, `tf.while_loop`) can't be given out.
        """
        graph = tf.compat.v1.get_default_graph()
        noted = self._gradients[replica_id()].items()
        return {k: v for k, v in noted if tf.nest.flatten(v, True)[0].graph is graph}

    def recording(self, optimizer: keras.optimizers.Optimizer) -> Callable[..., Any]:
        """An `apply` that notes, and hands on what is given."""
        apply = optimizer.apply

        def recording_apply(grads: Sequence[Any], trainable_variables: Any = None) -> Any:
            variables = list(trainable_variables or keras_private.trained_variables(optimizer))
            pairs = zip(grads, variables, strict=True)
            return apply([self._noted(*pair) for pair in pairs], variables)

        return recording_apply

    def _noted(self, gradient: Any, variable: Any) -> Any:
        name, noted = self._name_of(variable), self._gradients[replica_id()]
        while name in noted:
            name += "#"
        if gradient is None:
            return None
        noted[name] = gradient
        given = self._given[replica_id()].get(name)
        if given is None:
            return gradient
        # Made here, so that it has a device: several workers are told by it where to reduce.
        return tf.nest.map_structure(tf.identity, given, expand_composites=True)
