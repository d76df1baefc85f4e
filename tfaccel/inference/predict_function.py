"""A predict function under a plan, its SavedModel, and Keras's own function."""

import dataclasses
import os
from typing import Any

import keras
import tensorflow as tf

from tfaccel import passes
from tfaccel.compat.patching import SharedContext, instance_attribute
from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared, StepContext
from tfaccel.core.tracing import unmarked
from tfaccel.core.workload import Workload
from tfaccel.inference.sample import spec_of

# The attribute of calls that XLA is to compile.
_COMPILED = "_XlaMustCompile"
ENDPOINT = "serve"


class PredictFunction:
    """A function like `model.predict_function`, traced under a plan.

    It runs the model's `predict_step`, the user's own where there is one. The passes are active
    whenever it is traced, and leave the model as it was.

    Args:
        workload: the model, built, and its facts.
        plan: what to apply.
        prepared: what the plan's passes found out before.

    Attributes:
        plan: that it is traced under.
        compiles_sizes: whether XLA compiles some of it anew for each size; known once it ran.
        takes_arrays: False, as TensorFlow would copy them at each call.
    """

    takes_arrays = False

    def __init__(self, workload: Workload, plan: Plan, prepared: Prepared | None = None):
        self.plan = plan
        self.compiles_sizes = False
        self._workload = workload
        self._prepared = Prepared() if prepared is None else prepared
        context = StepContext(workload, prepared=self._prepared, may_be_empty=False)
        self._under_plan = SharedContext(lambda: plan.applied(context))
        self._function = tf.function(self.step, reduce_retracing=True, autograph=False)
        with unmarked(workload.model), self._under_plan:
            pass  # passes make variables and copies here, not in a trace

    def __call__(self, data: Any) -> Any:
        """Predicts a list of batches, as Keras hands them over; one for each step of a call."""
        # Inputs alone may come in a tuple or not, which must not cause another trace.
        batches = [batch if isinstance(batch, tuple) else (batch,) for batch in data]
        parts = [self._function(batch) for batch in batches]
        if len(parts) == 1:
            return parts[0]
        return tf.nest.map_structure(lambda *pieces: tf.concat(pieces, 0), *parts)

    @property
    def is_frozen(self) -> bool:
        """Whether the weights are constants."""
        return passes.FrozenWeights.name in self.plan.names

    @property
    def layers(self) -> list[keras.layers.Layer]:
        """The model and every layer in it."""
        return self._workload.layers

    def again(self) -> "PredictFunction":
        """The function for the model as it is now."""
        # Layers are looked up anew.
        made = PredictFunction(dataclasses.replace(self._workload), self.plan, self._prepared)
        made.compiles_sizes = self.compiles_sizes
        return made

    def step(self, batch: Any) -> Any:
        """One `predict_step` under the plan; to be traced."""
        model = self._workload.model
        with unmarked(model), self._under_plan:
            step = model.predict_step
            if model.jit_compile:
                step = tf.function(step, jit_compile=True, autograph=False)
            outputs = step(batch)
        graph = tf.compat.v1.get_default_graph()
        self.compiles_sizes |= any(map(_is_compiled, graph.get_operations()))
        return outputs


def _is_compiled(operation: tf.Operation) -> bool:
    if not operation.type.endswith("PartitionedCall"):
        return False  # reading a constant's attributes would copy megabytes
    attributes = operation.node_def.attr
    return _COMPILED in attributes and attributes[_COMPILED].b


def own_function(model: keras.Model) -> Any:
    """The model's own predict function; the model keeps the one that it has."""
    with instance_attribute(model, "predict_function", None):
        model.make_predict_function()  # makes one, as the model has none at this moment
        return model.predict_function


def save(
    model: keras.Model,
    function: PredictFunction | None,
    sample: Any,
    path: str | os.PathLike[str],
) -> None:
    """Writes a SavedModel whose `serve` takes batches of any size.

    Args:
        model: whose variables and tables go with it.
        function: what it computes; None for the model's own `predict_step`.
        sample: inputs. A size that the model declares as open is open, others are the sample's.
        path: a folder.

    Source: https://keras.io/api/models/model_saving_apis/export/
    """
    step = (function or PredictFunction(Workload(model, training=False), Plan())).step

    def serve(x: Any) -> Any:
        return step((x,))

    archive = keras.export.ExportArchive()
    for layer in tracked(model, function):
        archive.track(layer)
    archive.add_endpoint(ENDPOINT, serve, input_signature=[signature(model, sample)])
    # It has no gradients: those of functions that XLA compiles can't be traced alone.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    archive.write_out(os.fspath(path), options=options, verbose=False)


def tracked(model: keras.Model, function: PredictFunction | None) -> list[Any]:
    """The objects that hold the variables and tables that the graph reads."""
    if function is None or not function.is_frozen:
        return [model]
    # Constants are in the graph. Lookup tables are in layers without weights.
    return [x for x in function.layers if x.built and not x.variables and x is not model]


def signature(model: keras.Model, sample: Any) -> Any:
    """The inputs' specs: floating-point dtypes and sizes as declared, others as sampled."""
    spec = spec_of(sample)
    try:
        declared = list(model.inputs)
    except (AttributeError, ValueError):  # no graph of layers
        return spec
    leaves = tf.nest.flatten(spec)
    if len(leaves) != len(declared):
        return spec
    return tf.nest.pack_sequence_as(
        spec, [_opened(leaf, tensor) for leaf, tensor in zip(leaves, declared, strict=True)]
    )


def _opened(spec: Any, declared: Any) -> Any:
    """The spec with every size open that the model declares as open."""
    if not isinstance(spec, tf.TensorSpec) or spec.shape.rank != len(declared.shape):
        return spec
    pairs = zip(spec.shape, declared.shape, strict=True)
    sizes = [None if open_size is None else size for size, open_size in pairs]
    return tf.TensorSpec(sizes, declared.dtype if spec.dtype.is_floating else spec.dtype)
