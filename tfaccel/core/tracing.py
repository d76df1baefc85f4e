"""Tracing a model's forward pass to look at it, without running it and without a mark."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.looped import Call
from tfaccel.core.replicas import on_replicas
from tfaccel.core.workload import Workload


class UntraceableError(ValueError):
    """Tracing would change the model, or what is fed has no shape."""


def trace_forward(
    model: keras.Model, inputs: Any, training: bool = True, strategy: Any = None
) -> Any:
    """The graph of one forward pass of a built model, losses of layers included.

    Nothing is executed. The model keeps no mark of it: weights, random state, metrics, losses and
    attributes are what they were. `inputs` are arrays, tensors or `tf.TensorSpec`s, alone or in
    dicts, lists or tuples; under a `strategy` those of one replica.

    Raises:
        UntraceableError: an input has no shape of its own, or the pass makes variables.
        Exception: whatever the user's own layers raise.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> [x.shape for x in trace_forward(model, np.ones((2, 4))).structured_outputs[0:1]]
    [TensorShape([2, 8])]
    """
    named = {"training": training} if "training" in inspect.signature(model.call).parameters else {}

    def forward(inputs: Any) -> Any:
        return model(inputs, **named), model.losses  # losses: products in add_loss count

    return _graph(functools.partial(on_replicas, strategy, forward), model, inputs)


def trace_step(model: keras.Model, batch: Any) -> Any:
    """The graph of one `train_step`, as `trace_forward` has it of a forward pass.

    For models with a step of their own, which may call their parts otherwise than `call` does, or
    have no `call`. The model is built, and its optimizers too.

    Raises:
        UntraceableError: as in `trace_forward`.
        Exception: whatever the user's own step raises.
    """
    return _graph(model.train_step, model, batch)


def _graph(function: Callable[[Any], Any], model: keras.Model, inputs: Any) -> Any:
    in_loop = isinstance(inputs, Call)
    specs = tf.nest.map_structure(_spec_or_value if in_loop else _spec, inputs)
    # Keras traces its own step without AutoGraph too.
    traced = tf.function(lambda inputs: function(inputs), autograph=False)
    with unmarked(model), tf.variable_creator_scope(_no_variables):
        return traced.get_concrete_function(specs).graph


def _spec_or_value(leaf: Any) -> Any:
    """A loop may hand over numbers and names, which are part of what is traced."""
    return leaf if isinstance(leaf, bool | int | float | str | bytes) else _spec(leaf)


def _spec(leaf: Any) -> tf.TensorSpec | None:
    if leaf is None or isinstance(leaf, tf.TensorSpec):
        return leaf
    if isinstance(leaf, tf.Tensor | tf.Variable | np.ndarray | np.generic):
        return tf.TensorSpec(leaf.shape, leaf.dtype)
    raise UntraceableError(f"{type(leaf).__name__} has no shape of its own")


def _no_variables(*args: Any, **kwargs: Any) -> Any:
    """A variable that is made now would be the model's from now on, and draw its value."""
    raise UntraceableError("the forward pass makes variables")


def _parts(model: keras.Model) -> list[Any]:
    found: list[Any] = list(keras_private.flatten_layers(model))
    for optimizer in Workload(model).optimizers:
        found += keras_private.flatten_optimizers(optimizer)
    if getattr(model, "compiled", False):
        found += [*keras_private.losses_and_metrics(model), *model.metrics]
    return list({id(part): part for part in found}.values())


@contextlib.contextmanager
def unmarked(model: keras.Model) -> Iterator[None]:
    """Puts every attribute of the model, its layers, optimizers, losses and metrics back.

    For the time in which the model is traced: calls leave losses behind, and whatever a
    layer of the user's own keeps of them, tensors of that graph. What a trace that fails
    has begun to build would never be built again.
    """
    attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    contents: list[tuple[Any, Any, Any]] = []  # a list or the like, and what is in it
    for part in _parts(model):
        namespace = vars(part)
        attributes.append((namespace, dict(namespace)))
        for value in namespace.values():
            contents += [
                (kind, value, kind(value))
                for kind in (list, dict, set)
                if issubclass(type(value), kind)
            ]
    try:
        yield
    finally:
        for namespace, before in attributes:
            namespace.clear()
            namespace.update(before)
        for kind, value, elements in contents:
            # The base class's own methods: Keras's subclasses would track each element anew.
            kind.clear(value)
            (list.extend if kind is list else kind.update)(value, elements)
