"""Checks that several functions make of what users hand them."""

from collections.abc import Iterable
from typing import Any

import numpy as np


def one_of(name: str, value: Any, allowed: Iterable[Any]) -> Any:
    """The value, where it is one of those that are allowed; else ValueError.

    >>> one_of("padding", "same", ("valid", "same"))
    'same'
    """
    known = list(allowed)
    if value not in known:
        words = ", ".join(map(str, known))
        raise ValueError(f"`{name}` must be one of {words}. Received: {value!r}")
    return value


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of Python or NumPy; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_positive(value: Any) -> bool:
    """Whether a value is a positive whole number."""
    return is_whole(value) and value > 0


def positive(name: str, value: Any) -> int:
    """The value as a positive whole number; else ValueError.

    >>> positive("batch_size", 32)
    32
    """
    if not is_positive(value):
        raise ValueError(f"`{name}` must be a positive whole number. Received: {value!r}")
    return int(value)
