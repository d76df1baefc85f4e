"""Walking a traced graph, into its functions, branches and loops, to count its products."""

import dataclasses
import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfaccel.profiling.flops._rules import OPAQUE, UnknownShapeError, product
from tfaccel.profiling.flops._trips import Values, same, trip_count

_STOPPING = ("StopGradient", "PreventGradient")


class Origin(enum.IntEnum):
    """Which variables a tensor depends on, as far as gradients go. Joined by `max`."""

    DATA = 0  # the batch and constants
    FROZEN = 1  # also variables, but none that is trained
    TRAINED = 2  # variables that are trained


@dataclasses.dataclass(frozen=True)
class Flops:
    """The floating-point operations of a training step's products; a multiply-add is two."""

    forward: int = 0  # those of the forward pass
    # Those of the gradients: as many again for each operand of a product that has a gradient,
    # so twice the forward pass where nothing is frozen.
    backward: int = 0
    products: int = 0  # how many products the forward pass does
    uncounted: int = 0  # products and loops in it whose size is not known before it runs

    @property
    def step(self) -> int:
        """Operations of one training step, forward and backward."""
        return self.forward + self.backward

    def __add__(self, other: "Flops") -> "Flops":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Flops(*map(sum, pairs))

    def times(self, count: int) -> "Flops":
        """The same, `count` times over."""
        return Flops(
            self.forward * count, self.backward * count, self.products * count, self.uncounted
        )


def count(graph: Any, origins: Sequence[Origin]) -> Flops:
    """Counts the products of a traced function that its outputs and side effects need.

    `origins` has one for each of `graph.inputs`.
    """
    return _Frame(graph, origins).walk()[0]


class _Frame:
    """One graph being walked, with what is known of its inputs.

    Args:
        graph: the graph; it has `inputs`, `outputs` and `control_outputs`.
        origins: of its inputs.
        outer: the frame of the graph that calls it.
        bound: the outer graph's tensors that its inputs stand for, by the inputs' names.
        differentiated: whether the outputs have gradients.
    """

    def __init__(
        self,
        graph: Any,
        origins: Sequence[Origin],
        outer: "_Frame | None" = None,
        bound: Mapping[str, tf.Tensor] | None = None,
        differentiated: bool = True,
    ):
        self._graph = graph
        self._outer = outer
        self._differentiated = _differentiated(graph) if differentiated else frozenset()
        self._origins = {t.name: o for t, o in zip(graph.inputs, origins, strict=True)}
        known: Values | None = None if outer is None else outer._values
        self._values: Values = Values(bound or {}, known)

    def walk(self) -> tuple[Flops, list[Origin]]:
        """The tally, and the origins of the graph's outputs."""
        tally = Flops()
        needed = _needed(self._graph)
        for op in self._graph.get_operations():
            if op.name in needed and op.type != "Placeholder":
                part, origins = self._visit(op)
                tally += part
                for output, origin in zip(op.outputs, origins, strict=True):
                    self._origins[output.name] = origin
        return tally, [self._origin(output) for output in self._graph.outputs]

    def _origin(self, tensor: tf.Tensor) -> Origin:
        return self._origins.get(tensor.name, Origin.DATA)

    def _visit(self, op: tf.Operation) -> tuple[Flops, list[Origin]]:
        if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            return self._branches(op, [op.get_attr("f")], op.inputs)
        if op.type in ("If", "StatelessIf"):
            branches = [op.get_attr("then_branch"), op.get_attr("else_branch")]
            return self._branches(op, branches, op.inputs[1:])
        if op.type in ("Case", "StatelessCase"):
            return self._branches(op, op.get_attr("branches"), op.inputs[1:])
        if op.type in ("While", "StatelessWhile"):
            return self._loop(op)
        return self._multiply(op), self._passed_on(op)

    def _multiply(self, op: tf.Operation) -> Flops:
        try:
            found = product(op)
        except UnknownShapeError:
            return Flops(uncounted=1)
        if found is None:
            return Flops(uncounted=int(op.type in OPAQUE))
        operands = [self._origin(op.inputs[index]) for index in found.operands]
        if Origin.TRAINED not in operands or op.name not in self._differentiated:
            return Flops(found.flops, 0, 1)
        # One gradient for each operand. The batch's own is never computed, but counted, as is
        gradients = sum(origin != Origin.FROZEN for origin in operands)
        return Flops(found.flops, found.flops * gradients, 1)

    def _passed_on(self, op: tf.Operation) -> list[Origin]:
        """The origins of a plain operation's outputs."""
        joined = max(map(self._origin, op.inputs), default=Origin.DATA)
        stopped = min(joined, Origin.FROZEN)
        stops = op.type in _STOPPING
        return [stopped if stops or not _differentiable(t.dtype) else joined for t in op.outputs]

    def _branches(
        self, op: tf.Operation, functions: Sequence[Any], arguments: Iterable[tf.Tensor]
    ) -> tuple[Flops, list[Origin]]:
        """Functions of which one is called: the one with most FLOPs counts."""
        arguments = list(arguments)
        origins = [self._origin(argument) for argument in arguments]
        graphs = [self._function(function.name) for function in functions]
        if any(graph is None for graph in graphs):
            return self._unseen(op)
        outward = op.name in self._differentiated
        walked = [
            _Frame(graph, origins, self, _bound(graph, arguments), outward).walk()
            for graph in graphs
        ]
        dearest = max((tally for tally, _ in walked), key=lambda tally: tally.forward)
        unknown = max(tally.uncounted for tally, _ in walked)
        joined = [max(column) for column in zip(*(outs for _, outs in walked), strict=True)]
        return dataclasses.replace(dearest, uncounted=unknown), joined

    def _loop(self, op: tf.Operation) -> tuple[Flops, list[Origin]]:
        condition = self._function(op.get_attr("cond").name)
        body = self._function(op.get_attr("body").name)
        if condition is None or body is None:
            return self._unseen(op)
        origins = [self._origin(argument) for argument in op.inputs]
        bound = {
            given.name: argument
            for given, result, argument in zip(body.inputs, body.outputs, op.inputs, strict=True)
            if same(given, result)
        }
        while True:  # what the body computes from its own outputs, until nothing is new
            outward = op.name in self._differentiated
            tally, outs = _Frame(body, origins, self, bound, outward).walk()
            joined = [max(pair) for pair in zip(origins, outs, strict=True)]
            if joined == origins:
                break
            origins = joined
        trips = trip_count(op, condition, body, self._values)
        if trips is None:
            # Without products the number of trips does not matter.
            return Flops(uncounted=int(tally.products + tally.uncounted > 0)), origins
        return tally.times(trips), origins

    def _unseen(self, op: tf.Operation) -> tuple[Flops, list[Origin]]:
        return Flops(uncounted=1), self._passed_on(op)

    def _function(self, name: str) -> Any:
        """The graph of a function that this graph calls; None where it can't be had.

        TensorFlow has no public way from a call in a graph to the graph that is called.
        """
        find = getattr(self._graph, "_get_function", None)
        found = getattr(find(name) if find else None, "graph", None)
        if found is None and self._outer is not None:
            return self._outer._function(name)
        return found


def _bound(graph: Any, arguments: Iterable[tf.Tensor]) -> dict[str, tf.Tensor]:
    return {t.name: argument for t, argument in zip(graph.inputs, arguments, strict=True)}


def _needed(graph: Any) -> set[str]:
    """The operations that run: those that an output or a side effect depends on.

    Tracing leaves others behind, such as the step that Keras's RNN takes to see the
    shape of its output.
    """
    waiting = [output.op for output in graph.outputs]
    waiting += getattr(graph, "control_outputs", [])
    needed: set[str] = set()
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed.add(op.name)
            waiting += [tensor.op for tensor in op.inputs]
            waiting += op.control_inputs
    return needed


def _differentiated(graph: Any) -> frozenset[str]:
    """The operations that a loss made of the outputs has a gradient for."""
    waiting = [output.op for output in graph.outputs if _differentiable(output.dtype)]
    found: set[str] = set()
    while waiting:
        op = waiting.pop()
        if op.name not in found and op.type not in _STOPPING:
            found.add(op.name)
            waiting += [tensor.op for tensor in op.inputs if _differentiable(tensor.dtype)]
    return frozenset(found)


def _differentiable(dtype: tf.DType) -> bool:
    """Whether a gradient can pass; resources and variants hold what it can pass through."""
    return dtype.is_floating or dtype.is_complex or dtype in (tf.resource, tf.variant)
