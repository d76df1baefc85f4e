"""What Keras does not make public of the graphs that its models are made of."""

from typing import Any

import keras

from tfaccel.compat.keras_private import needed, overridden


def maker_of(layer: keras.layers.Layer) -> Any | None:
    """The operation whose result a layer was first called on; None where that is not known."""
    try:
        history = getattr(layer.input, "_keras_history", None)
    except (AttributeError, ValueError, RuntimeError):  # never called on symbols
        return None
    return None if history is None else history.operation


def runs_graph(layer: keras.layers.Layer) -> bool:
    """Whether a layer is a model whose call is Keras's own run through a graph of layers.

    A Functional or Sequential model with a `call` of the user's is not.
    """
    kind = _graph_kind(layer)
    return kind is not None and overridden(layer, kind, "call", "_run_through_graph") is None


def _graph_kind(layer: keras.layers.Layer) -> Any | None:
    """The class of Keras's that runs a graph of layers which this one derives from, if any."""
    names = ("Functional", "Sequential")
    found = (kind for kind in type(layer).__mro__ if kind.__name__ in names)
    return next((kind for kind in found if kind.__module__.startswith("keras.")), None)


def graph_operations(model: keras.Model) -> list[Any]:
    """The operations in a Functional model's graph that are no layers (`x + y`, `keras.ops.relu`).

    `Operation` classes are public, their names under `keras.ops` are not: an operation
    is told by its class name.
    """
    functional = any(kind.__name__ == "Functional" for kind in type(model).__mro__)
    return [
        item
        for item in (getattr(model, "operations", ()) if functional else ())
        if not isinstance(item, keras.layers.Layer) and type(item).__module__.startswith("keras.")
    ]


def graph_of(layer: keras.layers.Layer) -> Any | None:
    """The Functional model that runs a layer's graph; None where the class has its own `call`.

    A Functional model runs its own graph, a Sequential one has a Functional model
    inside once it is built.
    """
    kind = _graph_kind(layer)
    if kind is None or type(layer).call is not kind.call:
        return None
    graph = getattr(layer, "_functional", None) if kind.__name__ == "Sequential" else layer
    if graph is not None:
        needed(graph, "_run_through_graph")
    return graph


def graph_nodes(graph: Any) -> list[Any]:
    """The calls that a Functional model is made of, in the order in which Keras runs them.

    Each has an `operation`, `arguments.fill_in(values by id)`, `input_tensors` and
    `outputs` (KerasTensors). Inputs are left out.
    """
    by_depth = needed(graph, "_nodes_by_depth")
    in_order = [node for depth in sorted(by_depth, reverse=True) for node in by_depth[depth]]
    return [node for node in in_order if node.operation and not node.is_input]


def graph_outputs(graph: Any, values: dict[int, Any]) -> Any:
    """The outputs of a Functional model in its own structure, from values by KerasTensors' ids."""
    structure = needed(graph, "_outputs_struct")
    return keras.tree.pack_sequence_as(structure, [values[id(x)] for x in graph.outputs])
