"""The arguments and results of a step in a training loop of the user's own."""

import abc
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import keras
import tensorflow as tf


class Call(NamedTuple):
    """The arguments of one call of a step: the batch, as the loop hands it over."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Returned(dict[str, Any]):
    """A step's results: the numbers that it is judged by, by name, and all of them.

    The numbers are the floating-point scalars, such as losses; where there is none, all
    floating-point tensors.

    Attributes:
        value: the results as they were returned.

    >>> sorted(Returned((tf.constant(0.5), {"loss": tf.constant(1.0), "count": 3})))
    ['1/loss', 'output 0']
    >>> list(Returned(tf.ones(2)))
    ['loss']
    """

    def __init__(self, value: Any):
        found = dict(_named(value, "")) if value is not None else {}
        floats = {k: v for k, v in found.items() if _is_float(v)}
        scalars = {k: v for k, v in floats.items() if v.shape.rank == 0}
        super().__init__(scalars or floats)
        self.value = value


class Looped(abc.ABC):
    """Stands for the models of a loop where a `keras.Model` is needed.

    Attributes:
        trained_models: the user's.
    """

    trained_models: tuple[keras.layers.Layer, ...]

    @abc.abstractmethod
    def step_and(self, batch: Call, also: Callable[[], Any]) -> tuple[Any, Any]:
        """Called while a step is traced, makes it; returns its results and those of `also`."""

    @abc.abstractmethod
    def more_state(self, batch: Call) -> list[tuple[str, Any]]:
        """What a step assigns beside what the models and optimizers hold: names and resources."""


def _named(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The leaves of what was returned, by their places in it."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named(item, f"{prefix}/{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _named(item, f"{prefix}/{index}" if prefix else f"output {index}")
    else:
        yield prefix.removeprefix("output ") if "/" in prefix else prefix or "loss", value


def _is_float(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and value.dtype.is_floating
