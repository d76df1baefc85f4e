"""Models that read strings: TensorFlow makes numbers of them, an engine does the rest."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_graphs, keras_private
from tfaccel.core.unsupported import Refusal, Unsupported

_REMEDY = "let another model make numbers of them first"


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A Functional or Sequential model in two: the part that reads strings, and the rest.

    Attributes:
        graph: the Functional model that runs the layers.
        head: its calls that read or make strings, with all that these need, in order.
        tail: the others, in order.
        between: the symbolic tensors that the tail reads of the head or of the inputs.
    """

    graph: Any
    head: tuple[Any, ...]
    tail: tuple[Any, ...]
    between: tuple[Any, ...]

    @classmethod
    def of(cls, model: keras.Model) -> "Split | Unsupported":
        """A model's split, or the reason why it has none."""
        graph = keras_graphs.graph_of(model)
        if graph is None:
            why = "an input holds strings, and the model has no graph of layers"
            return Refusal.OWN_CODE(why, _REMEDY)
        nodes = keras_graphs.graph_nodes(graph)
        head = _with_words(nodes)
        tail = [node for node in nodes if node not in head]
        made = {id(x) for node in tail for x in node.outputs}
        words = [x.name for x in graph.outputs if id(x) not in made]
        if words or not tail:
            why = "an input holds strings, and an output is made before they are numbers"
            return Refusal.INPUTS(why, _REMEDY)
        read = {id(x): x for node in tail for x in node.input_tensors if id(x) not in made}
        return cls(graph, tuple(head), tuple(tail), tuple(read.values()))

    def numbers(self, x: Any) -> list[Any]:
        """The tensors that the tail reads, for inputs of the model.

        Raises:
            ValueError: one of them has a mask, which engines would not see.
        """
        flat = keras_private.standardized_inputs(self.graph, x)
        values = {id(port): y for port, y in zip(self.graph.inputs, flat, strict=True)}
        _run(self.head, values)
        found = [values[id(port)] for port in self.between]
        for port, tensor in zip(self.between, found, strict=True):
            if keras_private.mask_of(tensor) is not None:
                raise ValueError(f"{port.name} has a mask, which the rest of the model reads")
        return found


class Tail(keras.Model):
    """The part of a model that reads no strings; it takes a list of tensors.

    Args:
        split: of a model, whose layers this one runs.
    """

    def __init__(self, split: Split, name: str):
        super().__init__(name=name)
        self.parts = [n.operation for n in split.tail if isinstance(n.operation, keras.Layer)]
        self._split = split
        self.built = True

    def call(self, inputs: Any) -> Any:
        values = {id(port): y for port, y in zip(self._split.between, inputs, strict=True)}
        _run(self._split.tail, values)
        return keras_graphs.graph_outputs(self._split.graph, values)


def _with_words(nodes: Sequence[Any]) -> list[Any]:
    """The calls that strings go through, and all calls that these depend on."""
    needed: set[int] = set()
    found = []
    for node in reversed(nodes):
        tensors = (*node.input_tensors, *node.outputs)
        words = any(keras.backend.standardize_dtype(x.dtype) == "string" for x in tensors)
        if words or any(id(x) in needed for x in node.outputs):
            needed |= {id(x) for x in node.input_tensors}
            found.append(node)
    return found[::-1]


def _run(nodes: Sequence[Any], values: dict[int, Any]) -> None:
    """Runs calls on the values of the tensors that they read, and adds their results."""
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        outputs = keras.tree.flatten(node.operation(*args, **kwargs))
        values.update((id(x), y) for x, y in zip(node.outputs, outputs, strict=True))


def has_words(spec: Any) -> bool:
    """Whether an input is a tensor of strings."""
    leaves = tf.nest.flatten(spec)
    return any(isinstance(x, tf.TensorSpec) and x.dtype == tf.string for x in leaves)
