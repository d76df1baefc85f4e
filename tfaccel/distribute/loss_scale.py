"""One loss scale for all replicas."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from tfaccel.compat.collectives import true_on_all
from tfaccel.compat.patching import SharedContext, class_attribute


def agreed_loss_scale() -> contextlib.AbstractContextManager[None]:
    """Inside, replicas skip a step together when gradients of one of them are not finite.

    Keras's `LossScaleOptimizer` asks each replica about its own gradients, as they are not summed
    yet, and goes by the answer of a process's first replica: gradients that overflowed on another
    are applied. Of several workers some would skip the step, and the others wait for them forever.
    """
    return _AGREED


def _wrapped(own: Callable[..., Any]) -> Callable[..., Any]:
    def check_finite(optimizer: Any, grads: Any) -> Any:
        return true_on_all(own(optimizer, grads))

    return check_finite


_KIND = keras.optimizers.LossScaleOptimizer
_AGREED = SharedContext(
    lambda: class_attribute(_KIND, "check_finite", _wrapped(_KIND.check_finite))
)
