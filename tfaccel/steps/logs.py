"""What a step's logs say: which of them are losses, and which are not finite."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf


def tells_loss(name: str) -> bool:
    """Whether a log is called a loss."""
    return "loss" in name


def judged(logs: Any) -> dict[str, Any]:
    """The logs that a step is judged by.

    The log `loss`; where there is none, those that are called a loss; where none is, all.
    """
    named = logs if isinstance(logs, Mapping) else {"loss": logs}
    names = ["loss"] if "loss" in named else list(filter(tells_loss, named)) or list(named)
    return {name: named[name] for name in names}


def not_finite(logs: Any) -> frozenset[str]:
    """The names of the logs that a step is judged by and that are not finite."""
    return frozenset(name for name, log in judged(logs).items() if not _is_finite(log))


def _is_finite(log: Any) -> bool:
    return all(all_finite(value) for value in tf.nest.flatten(log))


def all_finite(value: Any) -> bool:
    """Whether every number of a log or variable is finite."""
    if isinstance(value, float):
        return math.isfinite(value)
    return bool(np.all(np.isfinite(np.asarray(value, dtype=np.float64))))
