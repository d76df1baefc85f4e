"""A model's forward computation as one flat graph with constants, for engines to convert."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.workload import Workload
from tfaccel.inference.predict_function import PredictFunction, signature
from tfaccel.passes import FrozenWeights

# Keras's names of inputs without one, which differ between processes.
_NUMBERED = re.compile(r"keras_tensor(_\d+)?")


@dataclasses.dataclass(frozen=True)
class Forward:
    """The computation of predictions, from named tensors to named tensors.

    Attributes:
        traced: the function, traced once; it takes and gives tensors by name.
        function: its only concrete function.
        inputs: the specs of the inputs, in their flattened order.
        outputs: the specs of the outputs, in their flattened order.
        structure: the structure of the outputs, with the place of each as its leaf.
        converted: engines' conversions of it, by name, which configurations of one engine
    """

    traced: Any
    function: Any
    inputs: tuple[tf.TensorSpec, ...]
    outputs: tuple[tf.TensorSpec, ...]
    structure: Any
    converted: dict[str, Any] = dataclasses.field(default_factory=dict)

    def made(self, name: str, make: Callable[[], Any]) -> Any:
        """The conversion of this name, which is made at its first use."""
        if name not in self.converted:
            self.converted[name] = make()
        return self.converted[name]

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs, in their order."""
        return [str(spec.name) for spec in self.inputs]

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in their order."""
        return [str(spec.name) for spec in self.outputs]

    @property
    def has_open_batch(self) -> bool:
        """Whether every output has a row for each sample, as far as the graph tells."""
        return all(spec.shape.rank and spec.shape[0] is None for spec in self.outputs)


@dataclasses.dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model that an engine runs.

    Attributes:
        inputs, outputs: the tensors, in the order of the flattened structures.
        structure: that of the outputs, with the place of each as its leaf.
        sizes: the shapes of the inputs that it was built for.
    """

    inputs: tuple[tf.TensorSpec, ...]
    outputs: tuple[tf.TensorSpec, ...]
    structure: Any
    sizes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, forward: Forward, x: Any) -> "Signature":
        """The signature of a graph for inputs of the sizes that `x` has."""
        sizes = tuple(tuple(map(int, leaf.shape)) for leaf in keras.tree.flatten(x))
        return cls(forward.inputs, forward.outputs, forward.structure, sizes)


def trace(workload: Workload, plan: Plan, prepared: Prepared | None = None) -> Forward:
    """Traces a model's predictions under a plan, the weights as constants.

    Args:
        workload: the model, built, and a batch as Keras hands it over.
        plan: passes to trace under; none of them an engine.
        prepared: what the plan's passes found out before.

    Raises:
        ValueError: an output is no plain tensor.
        Exception: whatever the trace raises.
    """
    model = workload.model
    x = keras.utils.unpack_x_y_sample_weight(workload.batches[0])[0]
    if model.variables and FrozenWeights.name not in plan.names:
        plan = Plan((*plan.passes, FrozenWeights()))
    step = PredictFunction(workload, plan, prepared).step
    return flat_forward(step, x, signature(model, x), model)


def flat_forward(step: Any, x: Any, spec: Any, model: keras.Model) -> Forward:
    """A step of predictions as a function of named tensors.

    Args:
        step: takes a tuple of the inputs, in their structure.
        x: inputs, in the structure that the step takes.
        spec: what they are, in the same structure.
        model: whose names inputs and outputs have.
    """
    names = input_names(model, x)
    leaves = keras.tree.flatten(spec)
    specs = [tf.TensorSpec(s.shape, s.dtype, n) for s, n in zip(leaves, names, strict=True)]
    found: dict[str, Any] = {}

    def forward(**tensors: Any) -> dict[str, Any]:
        outputs = step((keras.tree.pack_sequence_as(x, [tensors[name] for name in names]),))
        given = keras.tree.flatten(outputs)
        _check_plain(given)
        found["structure"] = keras.tree.pack_sequence_as(outputs, list(range(len(given))))
        # Tensors of one graph, whose names must differ.
        found["names"] = _unique([*names, *output_names(model, outputs)])[len(names) :]
        return dict(zip(found["names"], map(tf.identity, given), strict=True))

    traced = tf.function(forward, autograph=False)
    function = traced.get_concrete_function(**dict(zip(names, specs, strict=True)))
    outputs = [function.structured_outputs[name] for name in found["names"]]
    given = [
        tf.TensorSpec(o.shape, o.dtype, n) for o, n in zip(outputs, found["names"], strict=True)
    ]
    return Forward(traced, function, tuple(specs), tuple(given), found["structure"])


def input_names(model: keras.Model, x: Any) -> list[str]:
    """The names of the flattened inputs: keys of a dict, else those of the model's inputs."""
    declared = [str(tensor.name) for tensor in _declared_inputs(model)]
    if any(map(_NUMBERED.fullmatch, declared)):
        declared = []
    return _names(x, declared, "input")


def output_names(model: keras.Model, outputs: Any) -> list[str]:
    """The names of the flattened outputs: keys of a dict, else those of the layers behind them."""
    declared = [str(layer.name) for layer in keras_private.output_layers(model)]
    return _names(outputs, declared, "output")


def _declared_inputs(model: keras.Model) -> Sequence[Any]:
    try:
        return list(model.inputs)
    except (AttributeError, ValueError, TypeError):  # no graph of layers
        return ()


def _names(structure: Any, declared: list[str], what: str) -> list[str]:
    paths = [path for path, _ in keras.tree.flatten_with_path(structure)]
    if all(isinstance(path[-1] if path else None, str) for path in paths):
        names = ["_".join(map(str, path)) for path in paths]
    elif len(declared) == len(paths):
        names = declared
    else:
        names = [what if len(paths) == 1 else f"{what}_{place}" for place in range(len(paths))]
    return _unique([re.sub(r"\W", "_", name) for name in names])


def _unique(names: list[str]) -> list[str]:
    """The names, with a number behind repeated ones.

    >>> _unique(["a", "b", "a"])
    ['a', 'b', 'a_1']
    """
    found: list[str] = []
    for name in names:
        number, one = 0, name
        while one in found:
            number += 1
            one = f"{name}_{number}"
        found.append(one)
    return found


def _check_plain(outputs: list[Any]) -> None:
    for place, output in enumerate(outputs):
        if not isinstance(output, tf.Tensor):
            raise ValueError(f"output {place} is no plain tensor ({type(output).__name__})")
