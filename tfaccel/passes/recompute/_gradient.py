"""A gradient that computes what it needs again."""

from collections.abc import Iterable, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.passes.recompute._trace import Part, is_float


def with_gradient(part: Part, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """A part's results for its variables' values, with a gradient that computes the part again."""
    others: list[tf.Tensor] = []
    count = part.flowing
    wanted: set[int] = set()

    @tf.custom_gradient
    def once(*arguments: tf.Tensor) -> Any:
        # A tape around this must not keep what is inside.
        results = part.function(*map(tf.stop_gradient, arguments))
        others.extend(results[count:])

        def gradient(*upstream: Any) -> list[tf.Tensor | None]:
            indices = sorted(wanted) or range(count)
            known = {i: tf.convert_to_tensor(upstream[i]) for i in indices}
            wanted.clear()
            return _gradients(part.function, arguments, len(part.arguments), known)

        return results[:count], gradient

    flowing = once(*part.arguments, *values)
    return [*(_noted(x, i, wanted) for i, x in enumerate(flowing)), *others]


def _noted(result: tf.Tensor, index: int, wanted: set[int]) -> tf.Tensor:
    """The result, noting that its gradient is wanted.

    TensorFlow hands a custom gradient zeros for a result that no loss depends on. Variables
    that lead to this result alone must have no gradient instead: optimizers apply weight
    decay to each variable that has one.
    """

    @tf.custom_gradient
    def same(x: tf.Tensor) -> Any:
        def gradient(upstream: Any) -> Any:
            wanted.add(index)
            return upstream

        return tf.identity(x), gradient

    return same(result)


def _gradients(
    function: Any, arguments: Sequence[tf.Tensor], inputs: int, upstream: dict[int, tf.Tensor]
) -> list[tf.Tensor | None]:
    """The gradients of a part's arguments, from those of its results, by their index."""
    one = _one_after(list(upstream.values()))
    again = [*(_times(one, x) for x in arguments[:inputs]), *arguments[inputs:]]
    reached = _reached(function.graph, upstream)
    flowing = [x for i, x in enumerate(again) if i in reached and is_float(x)]
    with tf.GradientTape() as tape:
        tape.watch(flowing)
        results = function(*again)
    targets = [results[i] for i in upstream]
    found = iter(tape.gradient(targets, flowing, list(upstream.values())))
    return [next(found) if i in reached and is_float(x) else None for i, x in enumerate(again)]


def _reached(graph: Any, results: Iterable[int]) -> set[int]:
    """The arguments of a traced function that some of its results depend on."""
    tensors = [graph.outputs[i] for i in results]
    seen = {id(tensor): tensor for tensor in tensors}
    while tensors:
        for tensor in tensors.pop().op.inputs:
            if id(tensor) not in seen:
                seen[id(tensor)] = tensor
                tensors.append(tensor)
    return {i for i, argument in enumerate(graph.inputs) if id(argument) in seen}


def _one_after(gradients: Sequence[tf.Tensor]) -> tf.Tensor:
    """A 1.0 that exists no sooner than these gradients do.

    Inputs that are multiplied by it are other tensors than in the forward pass. So neither
    grappler nor XLA merges the second run with the first (both ignore control dependencies
    there), and the second run waits until these gradients exist.
    """
    firsts = [
        tf.cast(tf.math.real(tf.reduce_max(tf.reshape(tf.math.abs(g), [-1])[:1])), tf.float32)
        for g in gradients
    ]
    # No number is above infinity, but compilers don't use that.
    return tf.where(tf.add_n(firsts) > float("inf"), 0.0, 1.0)


def _times(one: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
    if x.dtype == tf.bool:
        return tf.logical_and(x, one > 0)
    return x if x.dtype == tf.string else x * tf.cast(one, x.dtype)
