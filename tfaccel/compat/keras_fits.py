"""What Keras keeps of a fit on its model, and how its optimizers sum over replicas."""

import contextlib
from collections.abc import Callable
from typing import Any

import keras

from tfaccel.compat.keras_private import KerasChangedError
from tfaccel.compat.patching import class_attribute


def forget_initial_epoch(model: Any) -> None:
    """Has the model's next fit begin at its own `initial_epoch`.

    `BackupAndRestore` leaves the epoch that it restored on the model, for all fits to come.
    """
    if getattr(model, "_initial_epoch", None) is not None:
        model._initial_epoch = None


def gradient_reduction(wrap: Callable[[Any], Any]) -> contextlib.AbstractContextManager[None]:
    """Inside, optimizers sum gradients over replicas by what `wrap` makes of Keras's own way.

    `wrap` is handed a function of an optimizer and its pairs of gradients and variables.
    """
    name = "_all_reduce_sum_gradients"
    for kind in keras.Optimizer.__mro__:
        if name in vars(kind):
            return class_attribute(kind, name, wrap(vars(kind)[name]))
    raise KerasChangedError(f"Optimizer.{name}")
