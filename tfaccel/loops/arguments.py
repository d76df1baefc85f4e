"""A loop's models and optimizers, as arguments that are checked."""

from collections.abc import Sequence
from typing import Any

import keras


def as_models(model: Any) -> tuple[keras.layers.Layer, ...]:
    """One model or several as a tuple; TypeError for anything else."""
    found = tuple(model) if isinstance(model, Sequence) else (model,)
    if not found or not all(isinstance(one, keras.layers.Layer) for one in found):
        raise TypeError(
            "`model` must be the keras.Model that the step trains, or a list of them. "
            f"Received: {_words(model)}"
        )
    return found


def as_optimizers(optimizer: Any) -> tuple[keras.optimizers.Optimizer, ...]:
    """No optimizer, one or several as a tuple; TypeError for anything else."""
    if optimizer is None:
        return ()
    found = tuple(optimizer) if isinstance(optimizer, Sequence) else (optimizer,)
    if not all(isinstance(one, keras.optimizers.Optimizer) for one in found):
        raise TypeError(
            "`optimizer` must be the keras.optimizers.Optimizer that the step applies, a list of "
            f"them, or None. Received: {_words(optimizer)}"
        )
    return found


def _words(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(type(one).__name__ for one in value)}]"
    return repr(value) if value is None or isinstance(value, str) else type(value).__name__
