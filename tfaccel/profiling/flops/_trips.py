"""How often a graph's loop runs, where that is known before it does."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

_COMPARISONS = ("Less", "LessEqual", "Greater", "GreaterEqual")
_SAME_VALUE = ("Identity", "Cast", "StopGradient")
_REDUCTIONS = ("Max", "Min", "Sum", "Prod", "Mean")  # of one number: that number


class Values:
    """Numbers that are known while a graph is traced.

    Args:
        bound: the graph's inputs, by name, with the outer graph's tensors they stand for.
        outer: the outer graph's values.
    """

    def __init__(self, bound: Mapping[str, tf.Tensor], outer: "Values | None"):
        self._bound = bound
        self._outer = outer

    def number(self, tensor: tf.Tensor) -> float | None:
        """The value of a tensor of one number; None where it is not known."""
        value = tf.get_static_value(tensor)
        if value is not None:
            return float(value) if getattr(value, "size", 1) == 1 else None
        origin = _origin(tensor)
        if origin is not tensor:
            return self.number(origin)
        if tensor.name in self._bound and self._outer is not None:
            return self._outer.number(self._bound[tensor.name])
        return None


def same(one: tf.Tensor, other: tf.Tensor) -> bool:
    """Whether two tensors of a graph are copies of one, so that a loop leaves it alone."""
    return _origin(one).name == _origin(other).name


def trip_count(loop: tf.Operation, condition: Any, body: Any, values: Values) -> int | None:
    """How often a While operation's body runs.

    Knows loops that count: the condition is one comparison of a counter with a limit, or
    several of which all must hold; the body adds a constant to each counter and leaves
    the limits alone. `tf.while_loop` with `maximum_iterations` and Keras's RNN are such.

    Args:
        loop: the operation.
        condition, body: its graphs; both have one input for each of the loop's.
        values: those of the graph that the loop stands in.

    Returns:
        The number of trips; None where it depends on what is computed.
    """
    trips: list[int] = []
    for part in _conjunction(condition.outputs[0]):
        if tf.get_static_value(part) is not None:
            if not tf.get_static_value(part):
                return 0
            continue
        bound = _Loop(loop, condition, body, values).bound(part.op)
        if bound is None:
            return None
        trips.append(bound)
    return min(trips, default=None)


class _Loop:
    def __init__(self, loop: tf.Operation, condition: Any, body: Any, values: Values):
        self._loop = loop
        self._condition = condition
        self._body = body
        self._values = values

    def bound(self, comparison: tf.Operation) -> int | None:
        """Trips until a comparison fails."""
        if comparison.type not in _COMPARISONS:
            return None
        counter, limit = comparison.inputs
        if comparison.type.startswith("Greater"):
            counter, limit = limit, counter
        index = _index(self._condition, counter)
        end = self._constant(self._condition, limit)
        if index is None or end is None:
            return None
        start = self._values.number(self._loop.inputs[index])
        step = self._step(index)
        if start is None or step is None or step <= 0:
            return None
        gap = (end - start) / step
        inclusive = comparison.type.endswith("Equal")
        return max(0, math.floor(gap) + 1 if inclusive else math.ceil(gap))

    def _step(self, index: int) -> float | None:
        """What the body adds to a loop variable, if it does no more than that."""
        update = _origin(self._body.outputs[index]).op
        if update.type not in ("Add", "AddV2"):
            return None
        left, right = update.inputs
        if _index(self._body, left) == index:
            return self._constant(self._body, right)
        return self._constant(self._body, left) if _index(self._body, right) == index else None

    def _constant(self, graph: Any, tensor: tf.Tensor) -> float | None:
        """A number that is the same in all trips."""
        index = _index(graph, tensor)
        if index is None:
            return self._values.number(tensor)
        unchanged = same(self._body.inputs[index], self._body.outputs[index])
        return self._values.number(self._loop.inputs[index]) if unchanged else None


def _conjunction(tensor: tf.Tensor) -> Iterator[tf.Tensor]:
    tensor = _origin(tensor)
    if tensor.op.type == "LogicalAnd":
        for part in tensor.op.inputs:
            yield from _conjunction(part)
    else:
        yield tensor


def _origin(tensor: tf.Tensor) -> tf.Tensor:
    """The tensor that it is a copy of."""
    while tensor.op.type in _SAME_VALUE or (
        tensor.op.type in _REDUCTIONS and tensor.op.inputs[0].shape.rank == 0
    ):
        tensor = tensor.op.inputs[0]
    return tensor


def _index(graph: Any, tensor: tf.Tensor) -> int | None:
    """Which of the graph's inputs a tensor is."""
    name = _origin(tensor).name
    return next((i for i, given in enumerate(graph.inputs) if given.name == name), None)
