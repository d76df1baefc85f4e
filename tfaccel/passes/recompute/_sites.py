"""Running parts of a model so that they are computed again in the backward pass."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_graphs, keras_private
from tfaccel.passes.recompute._gradient import with_gradient
from tfaccel.passes.recompute._partition import Piece
from tfaccel.passes.recompute._trace import NotPureError, Part, Run, State


class Recomputer:
    """Runs parts so that only their inputs are kept for the backward pass.

    A part is traced once, as a pure function. The forward pass calls that function and makes the
    assignments that it noted; the backward pass calls it again with the same values, so dropout
    draws the same mask and no statistic moves twice. While a part is traced (`busy`), parts
    inside it run as they are. `done` counts the parts; `left` says why others run as written.
    """

    def __init__(self) -> None:
        self.busy = False
        self.done = 0
        self.left: list[str] = []

    def __call__(self, run: Run, inputs: Sequence[tf.Tensor], state: State) -> list[Any]:
        """The part's outputs, flat.

        Args:
            run: computes them. It is run once, while tracing.
            inputs: the tensors that it reads.
            state: the variables of the part's layers, which it reads too.

        Raises:
            NotPureError: the part has to run as it is written. Nothing was changed.
        """
        self.busy = True
        try:
            part = Part(run, inputs, state)
        except NotPureError as error:
            self.left.append(str(error))
            raise
        finally:
            self.busy = False
        outside = part.outside(with_gradient(part, state.values()))
        self.done += 1
        for layer, loss in part.losses:
            layer.add_loss(outside(loss))
        for variable, value in part.updates:
            variable.assign(outside(value))
        return [_with_mask(leaf, outside) for leaf in part.outputs]


def _with_mask(leaf: Any, outside: Callable[[tf.Tensor], tf.Tensor]) -> Any:
    """An output as it is outside of the part, with the mask that it has inside."""
    if not isinstance(leaf, tf.Tensor):
        return leaf
    output, mask = outside(leaf), keras_private.mask_of(leaf)
    if mask is not None:
        keras_private.set_mask(output, outside(mask))
    return output


def _is_traced(values: Any) -> bool:
    return tf.inside_function() and not any(
        isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(values)
    )


def whole_call(layer: keras.layers.Layer, recomputer: Recomputer) -> Callable[..., Any]:
    """A layer's `call` as one part."""
    own, state = layer.call, State([layer])

    def call(*args: Any, **kwargs: Any) -> Any:
        if recomputer.busy or not _is_traced((args, kwargs)):
            return own(*args, **kwargs)
        leaves = keras.tree.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, tf.Tensor)]
        structure: Any = None

        def run(tensors: list[tf.Tensor]) -> Any:
            nonlocal structure
            filled = list(leaves)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            new_args, new_kwargs = keras.tree.pack_sequence_as((args, kwargs), filled)
            structure = own(*new_args, **new_kwargs)
            return structure

        try:
            outputs = recomputer(run, [leaves[i] for i in places], state)
        except NotPureError:
            return own(*args, **kwargs)
        return keras.tree.pack_sequence_as(structure, outputs)

    return call


class GraphRun:
    """Stands in for a Functional model's run through its graph."""

    def __init__(self, graph: Any, pieces: list[Piece], recomputer: Recomputer):
        self._graph = graph
        self._own = graph._run_through_graph
        self._pieces = pieces
        self._recomputer = recomputer
        nodes = [node for piece in pieces for node in piece.nodes]
        self._readers: dict[int, set[int]] = {id(x): {0} for x in graph.outputs}
        for node in nodes:
            for tensor in node.input_tensors:
                self._readers.setdefault(id(tensor), set()).add(id(node))
        # The variables are looked up here, outside of any layer's call.
        self._states = {id(node): _state_of(node) for node in nodes}

    def __call__(
        self,
        inputs: Any,
        operation_fn: Callable[[Any], Callable[..., Any]] = lambda operation: operation,
        call_fn: Any = None,
    ) -> Any:
        flat = keras.tree.flatten(inputs)
        ready = call_fn is None and not self._recomputer.busy and _is_traced(flat)
        if not ready or len(flat) != len(self._graph.inputs) or any(x is None for x in flat):
            options = {} if call_fn is None else {"call_fn": call_fn}
            return self._own(inputs, operation_fn=operation_fn, **options)
        values = {id(x): y for x, y in zip(self._graph.inputs, flat, strict=True)}
        for piece in self._pieces:
            if piece.kind == "recomputed":
                self._recompute(piece.nodes, values, operation_fn)
            else:
                _run_nodes(piece.nodes, values, operation_fn)
        return keras_graphs.graph_outputs(self._graph, values)

    def _recompute(
        self, nodes: tuple[Any, ...], values: dict[int, Any], operation_fn: Callable[[Any], Any]
    ) -> None:
        """Runs calls as one part; where that can't be, as two, and so on."""
        made = dict.fromkeys(id(x) for node in nodes for x in node.outputs)
        read = dict.fromkeys(id(x) for node in nodes for x in node.input_tensors)
        needed = [i for i in read if i not in made and isinstance(values[i], tf.Tensor)]
        inside = {id(node) for node in nodes}
        wanted = [i for i in made if self._readers.get(i, set()) - inside]

        def run(tensors: list[tf.Tensor]) -> list[Any]:
            """The values of `wanted`, from those of `needed`."""
            local = values | dict(zip(needed, tensors, strict=True))
            _run_nodes(nodes, local, operation_fn)
            return [local[i] for i in wanted]

        try:
            state = State.joined([self._states[id(node)] for node in nodes])
            outputs = self._recomputer(run, [values[i] for i in needed], state)
        except NotPureError:
            if len(nodes) == 1:
                _run_nodes(nodes, values, operation_fn)
            else:
                middle = len(nodes) // 2
                self._recompute(nodes[:middle], values, operation_fn)
                self._recompute(nodes[middle:], values, operation_fn)
        else:
            values.update(zip(wanted, outputs, strict=True))


def _state_of(node: Any) -> State:
    return State([node.operation] if isinstance(node.operation, keras.layers.Layer) else [])


def _run_nodes(
    nodes: tuple[Any, ...], values: dict[int, Any], operation_fn: Callable[[Any], Any]
) -> None:
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        flat = keras.tree.flatten(operation_fn(node.operation)(*args, **kwargs))
        values.update((id(x), y) for x, y in zip(node.outputs, flat, strict=False))
