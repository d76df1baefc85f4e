"""Combinations of parameters of which some are quick and all are under `slow`."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import pytest


def with_slow(values: Iterable[Any], slow: Collection[Any]) -> list[Any]:
    """The values, of which those are slow that show what others show."""
    return [pytest.param(v, marks=pytest.mark.slow if v in slow else ()) for v in values]


def crossed(names: tuple[str, ...], *axes: Iterable[Any]) -> pytest.MarkDecorator:
    """Parameters of all combinations; each value is in a quick one, the other ones are slow.

    An axis may name its values, as a mapping.
    """
    sides = [named(axis) for axis in axes]
    longest = max(map(len, sides))
    quick = {tuple(turn % len(side) for side in sides) for turn in range(longest)}
    found = []
    for places in itertools.product(*(range(len(side)) for side in sides)):
        chosen = [side[place] for side, place in zip(sides, places, strict=True)]
        marks = () if places in quick else pytest.mark.slow
        values, words = [value for _, value in chosen], [name for name, _ in chosen]
        found.append(pytest.param(*values, marks=marks, id="-".join(words)))
    return pytest.mark.parametrize(names, found)


def named(axis: Iterable[Any]) -> list[tuple[str, Any]]:
    """The values with names that are the same in every process."""
    if isinstance(axis, Mapping):
        return list(axis.items())
    return [(str(v) if is_plain(v) else f"{i}", v) for i, v in enumerate(axis)]


def is_plain(value: Any) -> bool:
    """Whether it is told by no address."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | bool | int | float)
