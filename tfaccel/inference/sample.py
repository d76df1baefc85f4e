"""The batch by which plans for predictions are timed and compared."""

import collections.abc
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat.patching import instance_attribute
from tfaccel.core.tracing import unmarked

# By what share of its own spread a number is moved in a changed sample.
_MOVED = 0.05
_KINDS = (
    "arrays or tensors as for `model.predict` (also in lists or dicts), a tf.data.Dataset of "
    "batches, or a PyDataset"
)

_EMPTY = "`sample` must hold at least one sample. Received: none"


def first_batch(model: keras.Model, sample: Any) -> Any:
    """The inputs of one batch, as the tensors that `model.predict` would feed.

    Keras's own `predict` is asked for them: it hands a batch to `predict_function`.

    Args:
        model: nothing of it is run or changed.
        sample: of any kind that `predict` takes and that can begin anew. An array is one batch.

    Raises:
        TypeError: `sample` is of a kind that `predict` does not take.
        ValueError: `sample` is empty.
    """
    if isinstance(sample, collections.abc.Iterator | str | bytes | None):
        raise TypeError(f"`sample` must be {_KINDS}. Received: {type(sample).__name__}")
    taken: list[Any] = []

    def take(data: Any) -> tf.Tensor:
        taken.append(data[0])
        return tf.zeros([1])

    batches = isinstance(sample, tf.data.Dataset | keras.utils.PyDataset)
    size = None if batches else sample_size(sample)
    if size == 0:
        raise ValueError(_EMPTY)
    try:
        with unmarked(model), instance_attribute(model, "predict_function", take):
            keras.Model.predict(model, sample, batch_size=size, steps=1, verbose=0)
    except NameError:  # that is how Keras says that there was no batch
        pass
    except (TypeError, ValueError) as error:
        kind = type(sample).__name__
        raise TypeError(f"`sample` must be {_KINDS}. Received: {kind} ({error})") from error
    x = keras.utils.unpack_x_y_sample_weight(taken[0])[0] if taken else None
    if x is None or sample_size(x) == 0:
        raise ValueError(_EMPTY)
    # Lists have become tuples on the way.
    return x if batches else keras.tree.pack_sequence_as(sample, keras.tree.flatten(x))


def sample_size(x: Any) -> int | None:
    """How many samples inputs have; None where that can't be told."""
    for leaf in tf.nest.flatten(x):
        shape = getattr(leaf, "shape", None)
        if shape is not None and len(shape):
            return None if shape[0] is None else int(shape[0])
    return None


def first_samples(x: Any, count: int | None) -> Any:
    """The first samples of inputs; all of them for None, or where there are no more.

    Raises:
        ValueError: `count` is no positive integer.
    """
    if count is None:
        return x
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"`batch_size` must be None or a positive integer. Received: {count!r}")
    return tf.nest.map_structure(lambda leaf: leaf[:count], x)


def spec_of(x: Any) -> Any:
    """The specs of batches like this one, of any number of samples."""

    def spec(leaf: Any) -> Any:
        if not isinstance(leaf, tf.Tensor):
            return tf.type_spec_from_value(leaf)
        return tf.TensorSpec([None, *leaf.shape[1:]] if leaf.shape.rank else [], leaf.dtype)

    return tf.nest.map_structure(spec, x)


def changed(x: Any) -> Any:
    """Another batch of the same kind, so that no plan is right by chance.

    In each place the samples' values change places. Floating-point ones are moved a little,
    too; anything else may be an index, whose values are kept.
    """
    random = np.random.default_rng(0)

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, tf.Tensor) or not leaf.shape.rank:
            return leaf
        values = random.permuted(leaf.numpy(), axis=0)
        if leaf.dtype.is_floating:
            noise = random.normal(size=values.shape) * _MOVED * np.std(values.astype(np.float64))
            values = (values + noise).astype(values.dtype)
        return tf.constant(values, leaf.dtype)

    return tf.nest.map_structure(change, x)


def as_tensors(x: Any) -> Any:
    """Inputs as `predict` has them: tensors, NumPy's floating-point numbers in `floatx`."""
    return tf.nest.map_structure(_as_tensor, as_arrays(x))


def as_arrays(x: Any) -> Any:
    """As `as_tensors`, but arrays stay arrays: engines need no tensors."""

    if isinstance(x, np.ndarray):
        # Walking through a structure takes as long as a small model's predictions.
        return _as_array(x)
    return tf.nest.map_structure(_as_array, keras.tree.lists_to_tuples(x))


def _as_array(leaf: Any) -> Any:
    if not isinstance(leaf, np.ndarray):
        if leaf is None or tf.is_tensor(leaf):
            return leaf
        leaf = np.asarray(leaf)
    return leaf.astype(keras.config.floatx(), copy=False) if leaf.dtype.kind == "f" else leaf


def _as_tensor(leaf: Any) -> Any:
    return tf.convert_to_tensor(leaf) if isinstance(leaf, np.ndarray) else leaf
