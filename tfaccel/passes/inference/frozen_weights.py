"""Weights as constants of the graph, for predictions."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.plan import Pass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported, named
from tfaccel.core.workload import Workload
from tfaccel.measure.units import size

# A graph is one protocol buffer, which must stay below 2 GiB, and optimizing it makes copies.
# Source: https://protobuf.dev/programming-guides/proto-limits/
MOST_BYTES = 2**30


@dataclasses.dataclass(frozen=True)
class FrozenWeights(Pass):
    """Traces predictions with the weights as constants.

    TensorFlow computes once, when it optimizes the graph, all that depends on constants
    alone: casts to 16 bits, transposes, joined and scaled weights; it multiplies constant
    factors into the weights of convolutions, and joins convolutions with bias and
    activation. Nothing is read from variables any more. The constants are the weights of the time
    when the model was accelerated, whatever happens to the model later.

    A forward pass that writes to a variable (`stateful=True`, random numbers, a metric in
    a layer) can't be frozen: what it writes would be lost.

    Source: https://keras.io/api/utils/backend_utils/#statelessscope-class;
    https://www.tensorflow.org/guide/graph_optimization (constant folding, remapper)
    """

    name: ClassVar[str] = "frozen_weights"
    # Every weight becomes a node, and the nodes behind are computed once.
    compile_factor: ClassVar[float] = 1.3

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if workload.training:
            return Refusal.TASK("constants can't be trained", "use tfaccel.accelerate")
        if not workload.model.variables:
            return Refusal.NO_USE("the model has no weights")
        for layer in workload.layers:
            if getattr(layer, "stateful", False):
                return Refusal.STATE(f"{named(layer)} is stateful")
        total = sum(_bytes(variable) for variable in workload.model.variables)
        if total > MOST_BYTES:
            return Refusal.LIMIT(f"{size(total)} of weights are too much for a graph")
        return None

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=not workload.training,
            reason="constants need not be read, and what depends on them alone is computed once",
        )

    @contextlib.contextmanager
    def applied(self, context: StepContext) -> Iterator[None]:
        variables = _unique(context.workload.model.variables)
        # Kept, so that a later trace for another shape has the same weights.
        values = context.scratch.setdefault(self.name, {})
        with tf.init_scope():
            for variable in variables:
                if id(variable) not in values:
                    values[id(variable)] = np.array(keras.ops.convert_to_numpy(variable))
        # Tensors made here and now are constants of the graph that is being traced.
        constants = [(v, tf.constant(values[id(v)])) for v in variables]
        with keras.StatelessScope(state_mapping=constants) as scope:
            given = dict(scope.state_mapping)
            yield
            _check_unwritten(scope.state_mapping, given, variables)


def _unique(variables: list[Any]) -> list[Any]:
    return list({id(variable): variable for variable in variables}.values())


def _bytes(variable: Any) -> int:
    return int(np.prod(variable.shape)) * int(tf.as_dtype(variable.dtype).size)


def _check_unwritten(now: dict[int, Any], given: dict[int, Any], variables: list[Any]) -> None:
    """Raises where the forward pass has written to a variable."""
    written = [key for key, value in now.items() if given.get(key) is not value]
    if written:
        names = {id(variable): variable.path for variable in variables}
        name = names.get(written[0], "a variable")
        raise ValueError(f"the forward pass writes to {name}, and a frozen copy would lose that")
