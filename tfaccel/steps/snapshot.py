"""Saving and restoring everything that a training step changes."""

import contextlib
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_graphs, keras_private
from tfaccel.compat.patching import instance_attributes
from tfaccel.core.replicas import local_values
from tfaccel.core.workload import Workload
from tfaccel.steps.resources import Resource, resources_of

_ANOTHER_SEED = 7919  # any number that no step draws its way to


class Snapshot:
    """The values of a set of variables and tables at one moment, kept in host memory.

    Holds the model's variables (weights, BatchNormalization statistics, seed
    generators), the metrics', and every optimizer's (slots, iterations, learning
    rate, a LossScaleOptimizer's scale). What a step touches beyond these (Keras's
    global seed generator, TensorFlow's global generator, a tf.Variable or a table of
    the user's own) is known once a step is traced, and joins through `include_graph`.

    The values that stateful random ops (`tf.random.normal` and its like) keep
    inside their kernels cannot be read, so they are not restored.
    """

    def __init__(self, variables: Iterable[Any]):
        self._values: dict[int, tuple[Resource, tuple[tf.Tensor, ...]]] = {}  # by handle
        for variable in variables:
            native = variable.value if isinstance(variable, keras.Variable) else variable
            for copy in local_values(native):
                self._include(Resource(copy.handle, (copy.dtype,)))

    @classmethod
    def of(cls, workload: Workload) -> "Snapshot":
        """A snapshot of a workload's model, metrics and optimizers."""
        return cls(known_variables(workload))

    def include_graph(self, graph: Any) -> None:
        """Adds what a traced graph uses, at its present value."""
        self.include(resources_of(graph))

    def include(self, resources: Iterable[Resource]) -> None:
        """Adds resources at their present values; those that are held keep theirs."""
        for resource in resources:
            self._include(resource)

    def _include(self, resource: Resource) -> None:
        if id(resource.handle) in self._values:
            return
        with tf.init_scope():
            value = resource.read()
        if value is not None:  # else this trace made it, and sets it at its end
            self._values[id(resource.handle)] = resource, value

    def take_anew(self) -> None:
        """Holds the present values in place of those that it held."""
        held = [resource for resource, _ in self._values.values()]
        self._values.clear()
        self.include(held)

    def restore(self) -> None:
        """Puts everything back, bit for bit; all of it also where the user interrupts that."""
        try:
            self._put_back()
        except Exception:
            raise
        except BaseException:
            self._put_back()
            raise

    def _put_back(self) -> None:
        for resource, value in self._values.values():
            resource.write(value)

    def reseed(self) -> None:
        """Moves every seed generator on from here, as if another seed had been set.

        Keras's generators hold two integers, TensorFlow's three.
        """
        for resource, (value, *more) in self._values.values():
            if not more and value.dtype.is_integer and value.shape in ((2,), (3,)):
                other = value + tf.cast(tf.fill(value.shape, _ANOTHER_SEED), value.dtype)
                resource.write((other,))

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
    """Makes the optimizer's slots, which the first step would make, so that they can be kept.

    A model with other optimizers is left out: GANs don't use the one that `compile` makes.
    """
    optimizer = model.optimizer
    if optimizer is None or optimizer.built or len(Workload(model).optimizers) > 1:
        return
    if Workload(model).strategy is not None:
        optimizer.build(model.trainable_variables)  # Keras does, too
    else:
        _build_as_traced(optimizer, model.trainable_variables)


def build_used_optimizer(model: keras.Model) -> None:
    """As `build_optimizer`, but only where the step is sure to use the optimizer.

    A `train_step` of the user's own may use another, or none; the first step shows it.
    """
    if keras_private.overridden(model, keras.Model, "train_step") is None:
        build_optimizer(model)


def _build_as_traced(optimizer: keras.optimizers.Optimizer, variables: list[Any]) -> None:
    """Builds an optimizer as the trace of Keras's first step does: what `build` assigns is lost.

    That trace makes the variables and is thrown away; in the trace that runs, `build` is over.
    So slots that should begin as copies of the weights (ScheduleFreeAdamW) begin as zeros.
    Keras's classes assign by their own methods; another class is built in a trace,
    which takes ten times as long.
    """
    parts = keras_private.flatten_optimizers(optimizer)
    if not all(map(keras_private.is_from_keras, parts)):
        tf.function(lambda: _built(optimizer, variables), autograph=False)()
        return
    methods = ("assign", "assign_add", "assign_sub")
    with instance_attributes((part, name, _assigns_nothing) for part in parts for name in methods):
        optimizer.build(variables)


def _built(optimizer: keras.optimizers.Optimizer, variables: list[Any]) -> None:
    if not optimizer.built:
        optimizer.build(variables)


def _assigns_nothing(variable: Any, value: Any) -> None:
    """Stands in for `Optimizer.assign` while an optimizer is built."""


def build_all(model: keras.Model, element_spec: Any) -> None:
    """Makes all variables that the first step would make, where they are known before it.

    Without a strategy Keras leaves them to the trace of its first step. A `tf.function` that
    makes variables is traced once more, so that a first step takes twice as long as it has to.
    Left to Keras are models that only a call shows (not built, subclassed) and steps of the
    user's own, which may train some variables only.

    Source: https://www.tensorflow.org/guide/function#creating_tfvariables
    """
    graph = keras_graphs.graph_of(model)
    built = all(layer.built for layer in keras_private.flatten_layers(model))
    if graph is None or not built or _steps_otherwise(model):
        return
    build_used_optimizer(model)
    _, targets, _ = keras.utils.unpack_x_y_sample_weight(element_spec)
    if targets is None:
        return
    parts = [part for part in keras_private.losses_and_metrics(model) if not part.built]
    # A batch that does not fit fails in the first step, with Keras's own error.
    with contextlib.suppress(Exception):
        symbolic = keras.tree.map_structure(_symbolic, targets)
        outputs = keras_graphs.graph_outputs(graph, {id(x): x for x in graph.outputs})
        for part in parts:
            part.build(symbolic, outputs)


def _steps_otherwise(model: keras.Model) -> bool:
    names = ("train_step", "compute_loss", "compute_metrics")
    return keras_private.overridden(model, keras.Model, *names) is not None


def _symbolic(spec: tf.TensorSpec) -> keras.KerasTensor:
    return keras.KerasTensor(spec.shape, spec.dtype.name)
