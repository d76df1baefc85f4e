"""Saving and restoring everything that a training step changes."""

from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.workload import Workload


class Snapshot:
    """The values of a set of variables at one moment, kept in host memory.

    Holds the model's variables (weights, BatchNormalization statistics, seed
    generators), the metrics', and every optimizer's (slots, iterations, learning
    rate, a LossScaleOptimizer's scale). What a step touches beyond these (Keras's
    global seed generator, TensorFlow's global generator, a tf.Variable of the
    user's own) is known once a step is traced, and joins through `include`.

    The values that stateful random ops (`tf.random.normal` and its like) keep
    inside their kernels cannot be read, so they are not restored.
    """

    def __init__(self, variables: Iterable[Any]):
        self._values: dict[int, tuple[tf.Variable, tf.Tensor]] = {}
        self.include(variables)

    @classmethod
    def of(cls, workload: Workload) -> "Snapshot":
        """A snapshot of a workload's model, metrics and optimizers."""
        return cls(known_variables(workload))

    def include(self, variables: Iterable[Any]) -> None:
        """Adds variables that are not in the snapshot yet, at their present values."""
        for variable in variables:
            native = variable.value if isinstance(variable, keras.Variable) else variable
            if isinstance(native, tf.Variable) and id(native) not in self._values:
                with tf.init_scope(), tf.device("CPU:0"):
                    # A plain read may share the variable's buffer, and the next step
                    # would pay for the copy.
                    copy = tf.raw_ops.DeepCopy(x=native.read_value())
                self._values[id(native)] = (native, copy)

    @property
    def variables(self) -> list[tf.Variable]:
        """The variables in the snapshot."""
        return [variable for variable, _ in self._values.values()]

    def restore(self) -> None:
        """Puts every variable back, bit for bit."""
        for variable, value in self._values.values():
            variable.assign(value)

    def __len__(self) -> int:
        return len(self._values)


def known_variables(workload: Workload) -> list[Any]:
    """The variables that Keras itself knows a step may change."""
    model = workload.model
    found = list(model.variables)
    for metric in model.metrics:
        found.extend(metric.variables)
    for optimizer in workload.optimizers:
        found.extend(optimizer.variables)
    return found


def build_optimizer(model: keras.Model) -> None:
    """Makes the optimizer's slots, which the first step would make, so that they can be kept."""
    optimizer = model.optimizer
    if optimizer is not None and not optimizer.built:
        optimizer.build(model.trainable_variables)
