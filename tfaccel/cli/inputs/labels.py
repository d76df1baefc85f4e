"""Labels that fit a model's losses: random ones, and checks of the user's."""

import enum
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from tfaccel.cli._command import UsageError
from tfaccel.cli.inputs.inputs import shown
from tfaccel.compat import keras_private


class Labels(enum.Enum):
    """The kind of labels that a loss takes."""

    INDICES = "the index of a class"
    ONE_HOT = "one number for each class"
    BINARY = "0 or 1 for each output"
    REAL = "one number for each output"


# By a part of the loss's name; the first that fits holds.
# https://keras.io/api/losses/
_WANTED: Mapping[str, Labels] = {
    "sparsecategorical": Labels.INDICES,
    "categoricalgeneralized": Labels.INDICES,
    "categorical": Labels.ONE_HOT,
    "kldivergence": Labels.ONE_HOT,
    **dict.fromkeys(("binary", "hinge", "dice", "tversky"), Labels.BINARY),
    **dict.fromkeys(
        ("mean", "mse", "mae", "mape", "msle", "huber", "logcosh", "poisson", "cosine"),
        Labels.REAL,
    ),
}


def wanted(loss: Any) -> Labels | None:
    """The kind of labels that a loss takes; None where its name does not say.

    >>> wanted("sparse_categorical_crossentropy").value
    'the index of a class'
    """
    name = _name(loss).lower().replace("_", "")
    return next((kind for part, kind in _WANTED.items() if part in name), None)


def outputs_with_losses(model: keras.Model, outputs: Any) -> Iterator[tuple[str, Any, Any]]:
    """Each output of a model with its name and its loss (None where it has none)."""
    flat, loss = keras.tree.flatten(outputs), model.loss
    names = [layer.name for layer in keras_private.output_layers(model)]
    if isinstance(outputs, dict):
        names = [next(key for key, value in outputs.items() if value is out) for out in flat]
    elif len(names) != len(flat):  # some are made by plain operations
        names = [str(index) for index in range(len(flat))]
    losses = list(loss) if isinstance(loss, list | tuple) else [loss] * len(flat)
    for index, (name, output) in enumerate(zip(names, flat, strict=True)):
        own = loss.get(name) if isinstance(loss, dict) else losses[index]
        yield name, output, own


def random_labels(model: keras.Model, outputs: Any, count: int, random: np.random.Generator) -> Any:
    """Labels in the structure of the model's outputs; None for a model without a loss.

    Raises:
        UsageError: the loss, or a `train_step` of the model's own, is not known to Keras.
    """
    if model.loss is None:
        if type(model).train_step is not keras.Model.train_step:
            raise UsageError("the model has a train_step of its own: give --data")
        return None
    made = [
        _random(output, loss, count, random)
        for _, output, loss in outputs_with_losses(model, outputs)
    ]
    return keras.tree.pack_sequence_as(outputs, made)


def check_labels(who: str, labels: np.ndarray, output: Any, loss: Any) -> None:
    """Checks labels against the output and the loss that they are for.

    Raises:
        UsageError: their shape, dtype or range is not what the loss takes.
    """
    kind, shape = wanted(loss), tuple(output.shape[1:])
    if kind is None:
        return
    if labels.dtype.kind not in "fiub":
        raise UsageError(f"{who} must hold numbers. Received: dtype {labels.dtype}")
    rule = shape[:-1] if kind is Labels.INDICES else shape
    if labels.shape[1:] not in (rule, (*rule, 1), rule[:-1] if rule[-1:] == (1,) else rule):
        raise UsageError(
            f"{who} must hold {kind.value}, shape {shown((None, *rule))}, for the loss "
            f"{_name(loss)}. Received: {shown(labels.shape)}"
        )
    if kind is Labels.INDICES:
        _check_indices(who, labels, shape[-1])


def _check_indices(who: str, labels: np.ndarray, below: int) -> None:
    low, high = labels.min(), labels.max()
    if not np.array_equal(labels, np.floor(labels)) or low < 0 or high >= below:
        raise UsageError(
            f"{who} must hold whole numbers from 0 to {below - 1}. "
            f"Received: {low} to {high}, dtype {labels.dtype}"
        )


def _random(output: Any, loss: Any, count: int, random: np.random.Generator) -> np.ndarray:
    kind = wanted(loss) if loss is not None else Labels.REAL
    shape = (count, *output.shape[1:])
    if kind is Labels.INDICES:
        return random.integers(0, shape[-1], shape[:-1]).astype(np.int32)
    if kind is Labels.ONE_HOT:
        return np.eye(shape[-1], dtype=np.float32)[random.integers(0, shape[-1], shape[:-1])]
    if kind is Labels.BINARY:
        return random.integers(0, 2, shape).astype(np.float32)
    if kind is Labels.REAL:
        return random.random(shape, dtype=np.float32)
    raise UsageError(f"no labels can be made up for the loss {_name(loss)}: give --data")


def _name(loss: Any) -> str:
    if isinstance(loss, keras.losses.Loss):
        return type(loss).__name__
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
