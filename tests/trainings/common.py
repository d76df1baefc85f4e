"""What a small program is, and the data that several of them learn from."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

# Models, and their Histories or other numbers by name.
Result = tuple[Sequence[keras.Model], Sequence[Any]]
TRAININGS: list["Training"] = []


@dataclasses.dataclass(frozen=True)
class Training:
    """A program of somebody who has never heard of tfaccel.

    Attributes:
        run: trains in a folder of its own, and gives the models and their Histories.
        rtol: what rounding may do to its losses and weights in so many steps.
        quick: whether `make test` has it, too.
        draws: whether its steps draw numbers by chance. XLA draws others from the same seeds.
    """

    run: Callable[[pathlib.Path], Result]
    rtol: float = 2e-3
    quick: bool = False
    draws: bool = False

    @property
    def name(self) -> str:
        return self.run.__name__


def training(**facts: Any) -> Callable[[Callable[[pathlib.Path], Result]], Any]:
    """Adds a function to the programs."""

    def add(run: Callable[[pathlib.Path], Result]) -> Callable[[pathlib.Path], Result]:
        TRAININGS.append(Training(run, **facts))
        return run

    return add


def numbers(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Numbers by chance."""
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def classes(count: int, most: int, *shape: int, seed: int = 1) -> np.ndarray:
    """Whole numbers below `most`, by chance."""
    return np.random.default_rng(seed).integers(0, most, (count, *shape))


def net(units: int = 8, width: int = 4, outputs: int = 1) -> keras.Sequential:
    """A small dense network."""
    hidden = keras.layers.Dense(units, activation="gelu")
    return keras.Sequential([keras.Input((width,)), hidden, keras.layers.Dense(outputs)])


def pairs(count: int = 48, width: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Rows and their sums."""
    x = numbers(count, width)
    return x, x.sum(axis=1, keepdims=True)
