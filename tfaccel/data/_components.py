"""The parts of a sample: inputs, labels, weights, by name."""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf


class Role(enum.Enum):
    """What a part of a sample is for, by the name of `fit`'s argument."""

    INPUT = "x"
    LABEL = "y"
    WEIGHT = "sample_weight"


@dataclasses.dataclass(frozen=True)
class Component:
    """One array of a structure."""

    name: str  # as in `x['image']`
    key: str  # the last part of the name, for rules given by name
    role: Role  # what it is for
    value: Any  # an array, a tensor, or a spec


def components(structure: Any) -> list[Component]:
    """All arrays of `x`, `(x,)`, `(x, y)` or `(x, y, sample_weight)`; None is left out.

    Source: keras.utils.unpack_x_y_sample_weight.

    >>> [part.name for part in components(({"a": 1, "b": 2}, 3))]
    ["x['a']", "x['b']", 'y']
    """
    split = isinstance(structure, tuple) and not hasattr(structure, "_fields")
    parts = structure if split and 1 <= len(structure) <= 3 else (structure,)
    return [
        Component(_name(role, path), str(path[-1]) if path else role.value, role, leaf)
        for role, part in zip(Role, parts, strict=False)
        for path, leaf in keras.tree.flatten_with_path(part)
        if leaf is not None
    ]


def _name(role: Role, path: tuple[Any, ...]) -> str:
    return role.value + "".join(f"[{step!r}]" for step in path)


def rule_for(rule: Any, component: Component) -> Any:
    """The component's rule: `rule` itself, or its entry in rules that are given by name."""
    return rule.get(component.key) if isinstance(rule, Mapping) else rule


def is_batched(spec: Any) -> bool:
    """Whether elements of this spec look like batches.

    They do where the first size of every part is unknown, as `batch` leaves it, or where
    several parts have the same.
    """
    shapes = [leaf.shape for leaf in tf.nest.flatten(spec) if hasattr(leaf, "shape")]
    if not shapes or any(shape.rank == 0 for shape in shapes):
        return False
    if any(shape.rank is None for shape in shapes):
        return True
    sizes = {shape[0] for shape in shapes}
    return sizes == {None} or (len(shapes) > 1 and len(sizes) == 1)


def rows(value: Any) -> int | None:
    """How many samples are in a batch; None for a single number."""
    shape = np.shape(value) if not hasattr(value, "shape") else value.shape
    return int(shape[0]) if len(shape) else None
