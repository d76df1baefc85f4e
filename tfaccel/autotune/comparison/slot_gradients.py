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


def shown_in(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The variables whose values around a step show the gradients, one for each trained one.

    Args:
        optimizer: one of which `shows_gradients` holds.
    """
    if type(optimizer) is keras.optimizers.SGD:
        momentum = bool(optimizer.momentum)
        trained = keras_private.trained_variables(optimizer)
        return list(keras_private.slots(optimizer, "momentums") if momentum else trained)
    return list(keras_private.slots(optimizer, _MOMENTS[type(optimizer)][0]))


def gradients(
    optimizer: keras.optimizers.Optimizer,
    before: Mapping[int, np.ndarray],
    after: Mapping[int, np.ndarray],
) -> list[tuple[Any, np.ndarray]]:
    """Each variable with the gradient that a step gave it.

    Args:
        optimizer: one of which `shows_gradients` holds; its rate is that of the step.
        before, after: the values of `shown_in`'s variables around the step, by `id`.

    Returns:
        Variables, as the optimizer holds them, with arrays as precise as their slots.
    """
    # Of an average new = kept * old + share * gradient, or of weights with kept = 1.
    if type(optimizer) is keras.optimizers.SGD:
        kept, share = float(optimizer.momentum) or 1.0, -float(optimizer.learning_rate)
    else:
        share = 1.0 - float(getattr(optimizer, _MOMENTS[type(optimizer)][1]))
        kept = 1.0 - share
    variables, shown = keras_private.trained_variables(optimizer), shown_in(optimizer)
    return [
        (v, _averaged(before[id(one)], after[id(one)], kept, share))
        for v, one in zip(variables, shown, strict=True)
    ]


def _averaged(old: np.ndarray, new: np.ndarray, kept: float, share: float) -> np.ndarray:
    """What was added to `kept * old` with a share, to give the new value."""
    found = np.multiply(old, -kept, dtype=np.float64)
    found += new
    found /= share
    return found.astype(np.result_type(old, np.float32), copy=False)


def _is_scheduled(optimizer: keras.optimizers.Optimizer) -> bool:
    return not isinstance(optimizer.get_config()["learning_rate"], float)
