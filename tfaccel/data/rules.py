"""Rules: what samples must be like."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.system.arguments import is_whole, positive

Shape = tuple[int | None, ...]

# One WAV file or image beyond this is taken for a mistake: as float32 it is 128 MiB or
# more, in every one of a batch.
MAX_FILE_BYTES = 2**26
# Pillow's limit on decompression bombs (PIL.Image.MAX_IMAGE_PIXELS):
# https://pillow.readthedocs.io/en/stable/reference/Image.html#PIL.Image.open
MAX_PIXELS = 2**30 // 4 // 3
# An .npz is unpacked in memory; beyond this it is left alone. An .npy is mapped.
MAX_ARRAY_BYTES = 2**31


@dataclasses.dataclass(frozen=True)
class Rules:
    """What `check` and `prepare` hold samples against.

    NaN and Inf, negative sample weights, empty samples and files that can't be read are
    faults in any case. `shape`, `dtype` and `value_range` are for inputs (and for
    predictions); `classes` is for labels. Each may be a dictionary where there are
    several inputs or outputs, by their names.

    Attributes:
        shape: of one sample, None for a size that may vary; `(height, width, channels)` for
            an image.
        dtype: the name of a dtype.
        value_range: the least and the greatest value.
        classes: how many classes; labels are whole numbers from 0 below it, or one
            number from 0 to 1 for each class in the last dimension.
        sample_rate: of WAV files, in Hz; None for the rate that most files have.
        max_file_bytes: a WAV file or image that is larger is a fault and is not read.
        max_pixels: an image with more is a fault and is not decoded.
        max_array_bytes: an array in an .npz file that is larger is not looked at.

    Raises:
        ValueError: an attribute breaks its rule.

    Example:

    >>> Rules(shape=(28, 28), value_range=(0, 1), classes=10).classes
    10
    """

    shape: Shape | Mapping[str, Shape] | None = None
    dtype: Any = None
    value_range: Any = None
    classes: int | Mapping[str, int] | None = None
    sample_rate: int | None = None
    max_file_bytes: int = MAX_FILE_BYTES
    max_pixels: int = MAX_PIXELS
    max_array_bytes: int = MAX_ARRAY_BYTES

    def __post_init__(self):
        for name in ("max_file_bytes", "max_pixels", "max_array_bytes"):
            positive(name, getattr(self, name))
        if self.sample_rate is not None:
            positive("sample_rate", self.sample_rate)
        for value in _each(self.classes):
            positive("classes", value)
        for value in _each(self.shape):
            _check_shape(value)
        for value in _each(self.value_range):
            _check_range(value)
        for value in _each(self.dtype):
            dtype_name(value)


def dtype_name(value: Any) -> str:
    """The name of a dtype of NumPy's, TensorFlow's or Keras's.

    >>> dtype_name(np.float32), dtype_name("bfloat16")
    ('float32', 'bfloat16')
    """
    try:
        return str(tf.as_dtype(value).name)
    except TypeError:
        raise ValueError(f"`dtype` must be the name of a dtype. Received: {value!r}") from None


def fits(shape: Sequence[int], rule: Sequence[int | None]) -> bool:
    """Whether a shape keeps to a rule, in which None stands for any size.

    >>> fits((28, 28, 3), (None, None, 3))
    True
    """
    return len(shape) == len(rule) and all(
        allowed in (None, size) for size, allowed in zip(shape, rule, strict=True)
    )


def _each(value: Any) -> list[Any]:
    values = value.values() if isinstance(value, Mapping) else [value]
    return [item for item in values if item is not None]


def _check_shape(value: Any) -> None:
    sizes = value if isinstance(value, tuple | list) else [-1]
    if not all(size is None or (is_whole(size) and size >= 0) for size in sizes):
        raise ValueError(f"`shape` must be sizes, None for one that varies. Received: {value!r}")


def _check_range(value: Any) -> None:
    numbers = isinstance(value, tuple | list) and len(value) == 2
    if not numbers or not all(isinstance(end, int | float | np.number) for end in value):
        raise ValueError(
            f"`value_range` must be the least and the greatest value. Received: {value!r}"
        )
    if math.isnan(value[0]) or math.isnan(value[1]) or value[0] > value[1]:
        raise ValueError(f"`value_range` must not end before it begins. Received: {value!r}")
