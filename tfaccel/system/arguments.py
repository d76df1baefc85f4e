"""Checks that several functions make of what users hand them."""

from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether a value is a positive whole number."""
    return is_whole(value) and value > 0


def positive(name: str, value: Any) -> int:
    """The value as a positive whole number.

    Args:
        name: the argument's.
        value: what was received.

    Raises:
        ValueError: it is none.

    >>> positive("batch_size", 32)
    32
    """
    if not is_positive(value):
        raise ValueError(f"`{name}` must be a positive whole number. Received: {value!r}")
    return int(value)
