"""Model FLOPs: what a training step has to multiply, whatever it is run by."""

import contextlib
import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel import keras_private
from tfaccel.profiling._flops_walk import Origin, count


@dataclasses.dataclass(frozen=True)
class Flops:
    """The floating-point operations of a training step's products; a multiply-add is two.

    Attributes:
        forward: those of the forward pass.
        backward: those of the gradients: as many again for each operand of a product that
            has a gradient, so twice the forward pass where nothing is frozen.
        products: how many products the forward pass does.
        uncounted: products and loops in it whose size is not known before it runs.
    """

    forward: int
    backward: int
    products: int
    uncounted: int

    @property
    def step(self) -> int:
        """Operations of one training step, forward and backward."""
        return self.forward + self.backward


def model_flops_per_step(model: keras.Model, batch: Any) -> int | None:
    """Model FLOPs of one training step on a batch, the numerator of MFU.

    Three times the forward pass's matrix products, convolutions and recurrent cells: one
    for the pass itself, one for the gradients of the inputs and one for those of the
    weights. Recomputation, optimizer, normalisation and elementwise maths do not count.

    What is frozen counts less: a product has no gradient for an operand that depends on
    frozen weights alone, and none at all where nothing trained goes into it. (A layer of
    statistics at the input, such as Normalization, is frozen in this sense.)

    Args:
        model: built; one step of training builds it.
        batch: as `fit` feeds it: `x`, `(x, y)` or `(x, y, sample_weight)`.

    Returns:
        Operations; None where they can't be counted in full, and for a model without
        products.

    Source: PaLM (Chowdhery et al. 2022), appendix B, https://arxiv.org/abs/2204.02311.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8)])
    >>> model_flops_per_step(model, (np.ones((2, 4)), np.ones((2, 8))))  # 3 * 2 * 2*4*8
    384
    """
    inputs, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
    flops = forward_flops(model, inputs)
    return None if flops is None or flops.uncounted else flops.step or None


def forward_flops(model: keras.Model, inputs: Any) -> Flops | None:
    """Counts the products of a model's forward pass in training.

    The pass is traced into a graph, with the inputs' shapes, and nothing is executed. The
    model keeps no mark of it: weights, random state, metrics, losses and attributes are
    what they were.

    Args:
        model: built.
        inputs: what the model is called with: arrays, tensors or `tf.TensorSpec`s, alone
            or in dicts, lists or tuples. Their shapes should be complete.

    Returns:
        The count; None for a model that is not built or can't be traced by itself (its
        `train_step` calls it otherwise), and for ragged and sparse inputs.
    """
    if not model.built:
        return None
    try:
        graph = _trace(model, tf.nest.map_structure(_spec, inputs))
        origins = _origins(model, graph)
    except Exception:  # whatever the user's own layers raise when called like this
        return None
    tally = count(graph, origins)
    return Flops(tally.forward, tally.backward, tally.products, tally.unknown)


class _UncountableError(Exception):
    """Counting would change the model, or what is fed has no shape."""


def _spec(leaf: Any) -> tf.TensorSpec | None:
    if leaf is None or isinstance(leaf, tf.TensorSpec):
        return leaf
    if isinstance(leaf, tf.Tensor | tf.Variable | np.ndarray | np.generic):
        return tf.TensorSpec(leaf.shape, leaf.dtype)
    raise _UncountableError(f"{type(leaf).__name__} has no shape of its own")


def _trace(model: keras.Model, specs: Any) -> Any:
    """The graph of one forward pass."""
    named = {"training": True} if "training" in inspect.signature(model.call).parameters else {}

    def forward(inputs: Any) -> Any:
        return model(inputs, **named), model.losses  # losses: products in add_loss count

    # Keras traces its own step without AutoGraph too.
    function = tf.function(forward, autograph=False)
    with _unmarked(model), tf.variable_creator_scope(_no_variables):
        return function.get_concrete_function(specs).graph


def _no_variables(*args: Any, **kwargs: Any) -> Any:
    """A variable that is made now would be the model's from now on, and draw its value."""
    raise _UncountableError("the forward pass makes variables")


@contextlib.contextmanager
def _unmarked(model: keras.Model) -> Iterator[None]:
    """Puts every attribute of the model and its layers back.

    Calls leave losses behind, and whatever a layer of the user's own keeps of them:
    tensors of a graph that is thrown away.
    """
    attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
    contents: list[tuple[Any, Any, Any]] = []  # a list or the like, and what is in it
    for layer in keras_private.flatten_layers(model):
        namespace = vars(layer)
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


def _origins(model: keras.Model, graph: Any) -> list[Origin]:
    """What each input of the graph is: the batch, or a variable, trained or not."""
    trained = {id(_handle(variable)) for variable in model.trainable_variables}
    captured = {
        inside.name: Origin.TRAINED if id(outside) in trained else Origin.FROZEN
        for outside, inside in graph.captures
        if outside.dtype == tf.resource
    }
    return [captured.get(tensor.name, Origin.DATA) for tensor in graph.inputs]


def _handle(variable: Any) -> Any:
    return getattr(variable, "value", variable).handle
