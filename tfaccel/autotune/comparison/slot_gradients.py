"""Gradients computed from the state after an optimizer's step, so that none need be recorded.

That serves optimizers whose state shows each gradient by itself: those with a first moment, and
plain SGD by its weights. It does not where gradients are clipped, scaled or added up first.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from tfaccel.compat import keras_private

# Attributes of an optimizer that change gradients before they reach the state.
_BETWEEN = (
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "gradient_accumulation_steps",
    "loss_scale_factor",
)
# The attribute with the first moments, and the decay that they are averaged with.
_MOMENTS: Mapping[type, tuple[str, str]] = {
    keras.optimizers.Adam: ("_momentums", "beta_1"),
    keras.optimizers.AdamW: ("_momentums", "beta_1"),
    keras.optimizers.Nadam: ("_momentums", "beta_1"),
    keras.optimizers.Adamax: ("_m", "beta_1"),
    keras.optimizers.Lion: ("_momentums", "beta_2"),
}


def shows_gradients(optimizer: keras.optimizers.Optimizer) -> bool:
    """Whether `gradients` can tell the gradients of an optimizer's step."""
    if any(getattr(optimizer, name, None) for name in _BETWEEN):
        return False
    if type(optimizer) is keras.optimizers.SGD:
        return bool(optimizer.momentum) or not _is_scheduled(optimizer)
    return type(optimizer) in _MOMENTS


def make_visible(optimizer: keras.optimizers.Optimizer) -> None:
    """Sets plain SGD's rate to 1, so that weights show gradients beyond their own rounding.

    The learning rate is a variable, which a snapshot puts back.
    """
    if type(optimizer) is keras.optimizers.SGD and not optimizer.momentum:
        optimizer.learning_rate = 1.0


def gradients(
    optimizer: keras.optimizers.Optimizer,
    before: Mapping[int, np.ndarray],
    after: Mapping[int, np.ndarray],
) -> list[tuple[Any, np.ndarray]]:
    """Each variable with the gradient that a step gave it.

    Args:
        optimizer: one of which `shows_gradients` holds; its rate is that of the step.
        before, after: the values of variables and slots around the step, by `id`.

    Returns:
        Variables, as the optimizer holds them, with float64 arrays.
    """
    variables = keras_private.trained_variables(optimizer)
    if type(optimizer) is keras.optimizers.SGD:
        rate = float(optimizer.learning_rate)
        if not optimizer.momentum:
            changes = [_wide(before[id(v)]) - _wide(after[id(v)]) for v in variables]
            return [(v, change / rate) for v, change in zip(variables, changes, strict=True)]
        kept, slots = float(optimizer.momentum), keras_private.slots(optimizer, "momentums")
        return [
            (v, (kept * _wide(before[id(slot)]) - _wide(after[id(slot)])) / rate)
            for v, slot in zip(variables, slots, strict=True)
        ]
    attribute, decay = _MOMENTS[type(optimizer)]
    share = 1.0 - float(getattr(optimizer, decay))
    found = []
    for v, slot in zip(variables, keras_private.slots(optimizer, attribute), strict=True):
        old, new = _wide(before[id(slot)]), _wide(after[id(slot)])
        found.append((v, old + (new - old) / share))
    return found


def _is_scheduled(optimizer: keras.optimizers.Optimizer) -> bool:
    return not isinstance(optimizer.get_config()["learning_rate"], float)


def _wide(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, np.float64)
