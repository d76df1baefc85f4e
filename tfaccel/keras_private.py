"""Every use of Keras API that is not public, each in one function.

Nothing public serves these purposes in Keras 3.10 to 3.15. Each function checks
that Keras still has what it needs and raises `KerasChangedError` when it has
not, so that a future Keras fails in one sentence and not in a strange place.
"""

from collections.abc import Iterator
from typing import Any

import keras


class KerasChangedError(RuntimeError):
    """A Keras version moved something that tfaccel needs."""

    def __init__(self, what: str):
        super().__init__(
            f"Keras {keras.__version__} has no {what}, which tfaccel needs. "
            "Use a tfaccel release that knows this Keras version."
        )


def flatten_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The model itself and every layer inside it, nested ones included, once each.

    `model.layers` is public, but shows the top level only.
    """
    flatten = getattr(model, "_flatten_layers", None)
    if flatten is None:
        raise KerasChangedError("Layer._flatten_layers")
    seen: dict[int, keras.layers.Layer] = {}
    for layer in flatten():
        seen.setdefault(id(layer), layer)
    return list(seen.values())


def variable_index(optimizer: keras.optimizers.Optimizer, variable: Any) -> int:
    """The position of a trained variable in the optimizer's lists of slots."""
    index = getattr(optimizer, "_get_variable_index", None)
    if index is None:
        raise KerasChangedError("Optimizer._get_variable_index")
    return index(variable)


def slots(optimizer: keras.optimizers.Optimizer, name: str) -> list[Any]:
    """The optimizer's list of slot variables `name` (such as `"_momentums"`)."""
    found = getattr(optimizer, name, None)
    if found is None:
        raise KerasChangedError(f"{type(optimizer).__name__}.{name}")
    return found


def trained_variables(optimizer: keras.optimizers.Optimizer) -> list[Any]:
    """The variables that the optimizer was built for."""
    found = getattr(optimizer, "_trainable_variables", None)
    if found is None:
        raise KerasChangedError("Optimizer._trainable_variables")
    return list(found)


def output_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers that make the model's outputs (Functional and Sequential).

    A subclassed model has no graph to follow: its last layer is taken.
    """
    if isinstance(model, keras.Sequential) and model.layers:
        last = model.layers[-1]
        yield from output_layers(last) if isinstance(last, keras.Model) else (last,)
    elif isinstance(model, keras.models.Model) and getattr(model, "outputs", None):
        for tensor in keras.tree.flatten(model.outputs):
            history = getattr(tensor, "_keras_history", None)
            if history is None:
                raise KerasChangedError("KerasTensor._keras_history")
            made_by = history.operation
            if isinstance(made_by, keras.Model):
                yield from output_layers(made_by)
            elif isinstance(made_by, keras.layers.Layer):
                yield made_by
    elif model.layers:
        last = model.layers[-1]
        yield from output_layers(last) if isinstance(last, keras.Model) else (last,)


def overridden(owner: Any, base: type, *names: str) -> str | None:
    """The first of the methods `names` that `owner` does not take from `base`.

    Methods are told apart by identity, so a subclass that leaves them alone has
    `base`'s. `names` may be private: a name that `base` itself lacks in this Keras
    version is overridden by whoever has it.

    Args:
        owner: a layer or an optimizer.
        base: the Keras class whose maths is asked for.
        names: the methods that this maths is made of.
    """
    for name in names:
        inherited = getattr(type(owner), name, None) is getattr(base, name, None)
        if name in vars(owner) or not inherited:
            return name
    return None
