"""Batches for a model: random ones, or those of an .npz file."""

import argparse
import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from tfaccel.cli._command import UsageError, positive_int
from tfaccel.cli.inputs.inputs import random_inputs
from tfaccel.cli.inputs.labels import random_labels
from tfaccel.cli.inputs.models import Chosen, first_line
from tfaccel.cli.inputs.npz import NpzSamples

# Enough that no step sees the batch of the step before.
_BATCHES = 4


@dataclasses.dataclass(frozen=True)
class Feed:
    """Batches to train on.

    Attributes:
        dataset: batches `(x, y)` or `(x, y, sample_weight)`, without end.
        batch_size: samples in each.
        source: where they are from, in words.
    """

    dataset: tf.data.Dataset
    batch_size: int
    source: str


def define_feed_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what to feed."""
    parser.add_argument("--batch_size", type=positive_int, default=32, help="samples in a batch")
    parser.add_argument(
        "--data",
        help="an .npz file with arrays x and y, or x_train and y_train, or named as the model's "
        "inputs and outputs; and sample_weight, if there is one",
    )


def make_feed(chosen: Chosen, args: argparse.Namespace) -> Feed:
    """What the flags ask for: a file's samples, or random ones of the model's kind.

    Raises:
        UsageError: the file, or the model, does not say enough; or they don't fit.
    """
    if args.data is None:
        return random_feed(chosen, args.batch_size)
    return file_feed(chosen, pathlib.Path(args.data), args.batch_size)


def random_feed(chosen: Chosen, batch_size: int, seed: int = 0) -> Feed:
    """Random samples of the model's input shapes, with labels that fit its loss.

    Args:
        chosen: the model.
        batch_size: samples in a batch.
        seed: the same seed gives the same samples.

    Raises:
        UsageError: the model does not say what its inputs or labels are like.
    """
    random = np.random.default_rng(seed)
    count = _BATCHES * batch_size
    x = random_inputs(chosen, count, random)
    y = random_labels(chosen.model, _first_outputs(chosen.model, x), count, random)
    return _feed((x,) if y is None else (x, y), batch_size, "random samples")


def file_feed(chosen: Chosen, path: pathlib.Path, batch_size: int) -> Feed:
    """The first samples of an .npz file.

    Raises:
        UsageError: the file can't be read, or its arrays don't fit the model.
    """
    file = NpzSamples(path)
    x = file.inputs(chosen.model)
    y = file.labels(chosen.model, _first_outputs(chosen.model, x))
    weight = file.sample_weight()
    count = len(keras.tree.flatten(x)[0])
    data = (x,) if y is None else (x, y) if weight is None else (x, y, weight)
    first = keras.tree.map_structure(lambda array: array[: _BATCHES * batch_size], data)
    return _feed(first, min(batch_size, count), f"{path} ({count} samples)")


def _first_outputs(model: keras.Model, x: Any) -> Any:
    """What the model makes of the first sample: its outputs' shapes and structure."""
    first = keras.tree.map_structure(lambda array: tf.convert_to_tensor(array[:1]), x)
    try:
        return model(first)
    except Exception as error:  # whatever a layer of the user's own may raise
        raise UsageError(f"the model does not take the data: {first_line(error)}") from error


def _feed(data: tuple[Any, ...], batch_size: int, source: str) -> Feed:
    # tf.data takes a list for one array.
    samples = tf.data.Dataset.from_tensor_slices(keras.tree.lists_to_tuples(data))
    return Feed(samples.batch(batch_size).cache().repeat().prefetch(2), batch_size, source)
