"""A predict function that an engine runs."""

import abc
import dataclasses
import functools
import pathlib
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.step_context import Prepared
from tfaccel.core.workload import Workload
from tfaccel.inference.engines.eight_bits import EightBits
from tfaccel.inference.engines.engine import EIGHT_BITS, Engine, Runner
from tfaccel.inference.engines.forward import Forward, Signature, trace
from tfaccel.inference.predict_function import signature
from tfaccel.inference.quality import Quality


@dataclasses.dataclass(frozen=True)
class Served:
    """A model that an engine runs, from inputs to outputs in the user's structures.

    Attributes:
        runner: runs the model.
        signature: its inputs and outputs.
    """

    runner: Runner
    signature: Signature

    def __call__(self, x: Any, any_size: bool = False) -> Any:
        """Predictions for a batch, as tensors.

        Args:
            x: tensors that `accepts` takes.
            any_size: whether the batch may have another size than the sample.
        """
        run = self.runner.run_any_size if any_size else self.runner.run
        arrays = run(keras.tree.flatten(x))
        tensors = list(map(_tensor, arrays, self.signature.outputs))
        if not keras.tree.is_nested(self.signature.structure):
            return tensors[0]
        return keras.tree.pack_sequence_as(self.signature.structure, tensors)


def _tensor(array: np.ndarray, spec: tf.TensorSpec) -> tf.Tensor:
    made = tf.convert_to_tensor(array)
    return made if made.dtype == spec.dtype else tf.cast(made, spec.dtype)


def accepts(specs: Iterable[tf.TensorSpec], x: Any) -> bool:
    """Whether inputs are of these kinds; sizes may differ where the kinds leave them open.

    Args:
        specs: in the order of the flattened inputs.
        x: tensors and arrays, in any structure.
    """
    specs, leaves = list(specs), keras.tree.flatten(x)
    return len(specs) == len(leaves) and all(map(_is_of, specs, leaves))


def _is_of(spec: tf.TensorSpec, leaf: Any) -> bool:
    if isinstance(leaf, np.ndarray):
        return _takes(spec, leaf.dtype, leaf.shape)
    return isinstance(leaf, tf.Tensor) and spec.is_compatible_with(leaf)


# Comparing shapes takes a good part of a small model's predictions.
@functools.lru_cache(maxsize=256)
def _takes(spec: tf.TensorSpec, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bool:
    is_of_dtype = spec.dtype.is_numpy_compatible and spec.dtype.as_numpy_dtype == dtype
    return bool(is_of_dtype and spec.shape.is_compatible_with(shape))


def inputs_of(batch: Any) -> Any:
    """The inputs in a batch as Keras hands it over."""
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def each_batch(call: Callable[[Any], Any], data: Iterable[Any]) -> Any:
    """Predictions for a list of batches, one for each step of a call, joined as Keras joins them.

    Args:
        call: predicts the inputs of one.
        data: batches, as Keras hands them over.
    """
    parts = [call(inputs_of(batch)) for batch in data]
    if len(parts) == 1:
        return parts[0]
    return keras.tree.map_structure(lambda *pieces: tf.concat(pieces, 0), *parts)


class ServedFunction(abc.ABC):
    """A function like `model.predict_function` that does not run the Keras model.

    Args:
        plan: that predictions are made under.
        specs: of the inputs, in their flattened order.

    Attributes:
        plan: as given.
        compiles_sizes: False, as other sizes than the sample's share one compiled model.
        takes_arrays: whether arrays can be handed over without a copy into tensors.
    """

    compiles_sizes = False
    takes_arrays = False

    def __init__(self, plan: Plan, specs: Iterable[tf.TensorSpec]):
        self.plan = plan
        self.specs = tuple(specs)

    @abc.abstractmethod
    def served(self) -> Served:
        """The model that an engine runs."""

    def __call__(self, data: Any) -> Any:
        """Predicts a list of batches, as Keras hands them over; one for each step of a call."""
        return each_batch(self.served(), data)

    def any_size(self, data: Any) -> Any:
        """As a call, for batches of other sizes than the sample's."""
        return each_batch(lambda x: self.served()(x, any_size=True), data)

    def accepts(self, data: Any) -> bool:
        """Whether batches are of the kind that the function was made for."""
        return all(accepts(self.specs, inputs_of(batch)) for batch in data)

    def again(self) -> "ServedFunction":
        """The function for the model as it is now; by default itself, as nothing changes."""
        return self


class EngineFunction(ServedFunction):
    """A predict function that an engine runs.

    It is traced, converted and compiled when it is first called.

    Args:
        workload: the model, built, and a batch of the size that matters.
        plan: an engine, and what the model is traced under for it.
        prepared: what the plan's passes found out before.
        cache: the engine's folder for what compiling made; None for none.
        forwards: graphs of the model as it is now, by plan, which configurations share.
        quality: the user's labelled samples; None for none.
    """

    takes_arrays = True

    def __init__(
        self,
        workload: Workload,
        plan: Plan,
        prepared: Prepared | None = None,
        *,
        cache: pathlib.Path | None = None,
        forwards: dict[Plan, Forward] | None = None,
        quality: Quality | None = None,
    ):
        self._x = inputs_of(workload.batches[0])
        super().__init__(plan, keras.tree.flatten(signature(workload.model, self._x)))
        self._engine = _only_engine(plan)
        self._workload, self._prepared, self._cache = workload, prepared, cache
        self._forwards, self._quality = forwards, quality
        self._served: Served | None = None
        self._lock = threading.Lock()

    def again(self) -> "EngineFunction":
        """The function for the model as it is now."""
        workload = dataclasses.replace(self._workload)  # layers are looked up anew
        return EngineFunction(
            workload, self.plan, self._prepared, cache=self._cache, quality=self._quality
        )

    def served(self) -> Served:
        """The model that the engine runs, made at the first access."""
        if self._served is None:
            with self._lock:
                self._served = self._served or self._built()
        return self._served

    def _built(self) -> Served:
        forward, sample = self._forward(), keras.tree.flatten(self._x)
        eight_bits = None
        if self._engine.precision == EIGHT_BITS:
            eight_bits = _eight_bits(self._quality, forward)
        runner = self._engine.build(forward, sample, self._cache, eight_bits)
        self._forwards = None
        return Served(runner, Signature.of(forward, self._x))

    def _forward(self) -> Forward:
        plan = self.plan.without(self._engine.name)
        known = {} if self._forwards is None else self._forwards
        if plan not in known:
            known[plan] = trace(self._workload, plan, self._prepared)
        return known[plan]


def _eight_bits(quality: Quality | None, forward: Forward) -> EightBits:
    if quality is None:
        raise ValueError("8 bits need `y`, the labels of the sample")
    if not all(s.shape.rank and s.shape[0] is None for s in (*forward.inputs, *forward.outputs)):
        raise ValueError("8 bits need a model whose inputs and outputs have any number of samples")

    def score(arrays: Sequence[Any], rows: Any) -> float:
        structure = keras.tree.pack_sequence_as(forward.structure, list(arrays))
        return quality.score(structure, rows)

    inputs = [np.asarray(leaf) for leaf in keras.tree.flatten(quality.x)]
    return EightBits(inputs, score, quality.max_drop, quality.timer())


def engine_of(plan: Plan) -> Engine | None:
    """The engine of a plan; None where TensorFlow runs it."""
    return next((item for item in plan.passes if isinstance(item, Engine)), None)


def _only_engine(plan: Plan) -> Engine:
    engines = [item for item in plan.passes if isinstance(item, Engine)]
    if len(engines) != 1:
        raise ValueError(f"a plan must have one engine. Received: {plan}")
    return engines[0]
