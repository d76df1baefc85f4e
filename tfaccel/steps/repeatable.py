"""Whether a step may be run again on the same batch, as trials do."""

from collections.abc import Callable
from typing import Any

from tfaccel.compat import keras_private
from tfaccel.steps.resources import side_effects, stateful_random_ops


class CannotRepeatError(ValueError):
    """A step can't be tried, as part of it can't be undone; the message says which."""


def unrepeatable(function: Callable[..., Any], iterator: Any) -> str:
    """Why a step must not be run twice on a batch, in a sentence; empty where it may be.

    `iterator` is like those that the train or test function runs on; no batch is taken.
    """
    effects = _found(side_effects, function, iterator)
    if not effects:
        return ""
    return (
        f"Your own step {' and '.join(effects)}, which can't be undone, so nothing was tried: "
        "that would repeat it. A plan that is given repeats no step."
    )


def unrestorable(function: Callable[..., Any], iterator: Any) -> str:
    """What of a train step's state trials can't put back, in a sentence; empty where they can."""
    drawn = _found(stateful_random_ops, function, iterator)
    if not drawn:
        return ""
    return (
        f"Your own step draws random numbers by ops with a state of their own ({', '.join(drawn)}),"
        " which trials draw from, too; keras.random and tf.random.Generator are put back."
    )


def _found(look: Callable[[Any], tuple[str, ...]], *step: Any) -> tuple[str, ...]:
    graph = keras_private.traced_graph(*step)
    return () if graph is None else look(graph)
