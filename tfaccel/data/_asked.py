"""What `prepare` is asked for, checked."""

import dataclasses
from typing import Any

import tensorflow as tf

from tfaccel.data._pipeline import Map, Pipeline
from tfaccel.data._sources import Arrays, is_arrays
from tfaccel.system.arguments import positive


def asked_for(
    data: Any,
    batch_size: int | None,
    map: Map | None,
    augment: Map | None,
    shuffle: bool | int,
    seed: int | None,
    drop_remainder: bool,
) -> Pipeline:
    """`prepare`'s arguments as a pipeline."""
    if batch_size is not None:
        positive("batch_size", batch_size)
    for name, function in (("map", map), ("augment", augment)):
        if function is not None and not callable(function):
            raise ValueError(f"`{name}` must be a function, or None. Received: {function!r}")
    source = _source(data)
    if batch_size is None and isinstance(source, Arrays):
        raise ValueError("`batch_size` must be given for arrays. Received: None")
    pipeline = Pipeline(source, batch_size, map, augment, 0, seed, drop_remainder)
    if shuffle is True and pipeline.length is None:
        raise ValueError(
            "`shuffle` must be the size of a buffer where the length of `data` is unknown or "
            "without end. Received: True"
        )
    if not isinstance(shuffle, bool):
        positive("shuffle", shuffle)
    buffer = pipeline.length if shuffle is True else int(shuffle)
    return dataclasses.replace(pipeline, shuffle=buffer or 0)


def _source(data: Any) -> Arrays | tf.data.Dataset:
    if isinstance(data, tf.data.Dataset):
        return data
    if not is_arrays(data):
        raise TypeError(
            "`data` must be arrays or a tf.data.Dataset (of a generator: "
            "tf.data.Dataset.from_generator). Received: " + type(data).__name__
        )
    if isinstance(data, tuple) and data and all(part is None for part in data[1:]):
        data = data[0]  # Keras's (x, None)
    arrays = Arrays.of(data)
    if not arrays.length:
        raise ValueError("`data` must have at least one sample. Received: none")
    if any(leaf is None or leaf.dtype.kind == "O" for leaf in tf.nest.flatten(arrays.structure)):
        raise ValueError(
            "`data` must be arrays of one shape and dtype, without None. "
            "`tfaccel.data.check` says which samples differ"
        )
    return arrays


def mode_of(validate: Any) -> str:
    """`report`, `drop`, or nothing."""
    modes = {False: "", True: "report", "report": "report", "drop": "drop"}
    if not isinstance(validate, bool | str) or validate not in modes:
        raise ValueError(
            f'`validate` must be True, False, "report" or "drop". Received: {validate!r}'
        )
    return modes[validate]
