"""Model FLOPs: the multiplications that a training step needs, under any plan."""

from typing import Any

import keras
import tensorflow as tf

from tfaccel.core.tracing import trace_forward
from tfaccel.profiling.flops._walk import Flops, Origin, count


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
    model's weights, random state, metrics, losses and attributes stay as they were.

    Args:
        model: built.
        inputs: as the model is called with them: arrays, tensors or `tf.TensorSpec`s, alone
            or in dicts, lists or tuples. Their shapes should be complete.

    Returns:
        The count; None for a model that is not built or can't be traced by itself (its
        `train_step` calls it otherwise), and for ragged and sparse inputs.
    """
    if not model.built:
        return None
    try:
        graph = trace_forward(model, inputs)
        origins = _origins(model, graph)
    except Exception:  # whatever the user's own layers raise when called like this
        return None
    return count(graph, origins)


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
