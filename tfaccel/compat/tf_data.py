"""What a tf.data pipeline is made of, read without running it."""

import dataclasses
from collections.abc import Container, Iterator
from typing import Any

import tensorflow as tf

# Stateful by TensorFlow's book, and yet reading them changes nothing.
_READ_ONLY = frozenset({"VarHandleOp", "ReadVariableOp", "LookupTableFindV2", "HashTableV2"})
_PYTHON = frozenset({"GeneratorDataset", "PyFunc", "EagerPyFunc", "PyFuncStateless"})


@dataclasses.dataclass(frozen=True)
class Stage:
    """One transformation of a pipeline, or its source, named as tf.data has it, as `ParallelMap`.

    It `reshuffles` if each iteration draws another order; `stateful_ops` are the operations in
    its functions that keep or change something.
    """

    name: str
    reshuffles: bool = False
    stateful_ops: frozenset[str] = frozenset()

    @property
    def runs_python(self) -> bool:
        """Whether Python code makes its elements."""
        return bool(self.stateful_ops & _PYTHON)


def stages(dataset: tf.data.Dataset) -> tuple[Stage, ...] | None:
    """The transformations, sources first; None where this TensorFlow doesn't tell.

    Serialising the graph would tell as much by public API, and copy every array in it:
    26 s for one of 800 MB.

    >>> [stage.name for stage in stages(tf.data.Dataset.range(3).batch(2).prefetch(1))]
    ['Range', 'Batch', 'Prefetch']
    """
    try:
        return tuple(_walk(dataset))
    except (AttributeError, TypeError, NotImplementedError):
        return None


def _walk(dataset: tf.data.Dataset) -> Iterator[Stage]:
    for earlier in dataset._inputs():
        yield from _walk(earlier)
    ops = {
        op.type
        for function in dataset._functions()
        for op in function.function.graph.get_operations()
        if op.op_def is not None and op.op_def.is_stateful
    }
    name = type(dataset).__name__.strip("_").removesuffix("Dataset").removesuffix("V2")
    reshuffles = name == "Shuffle" and getattr(dataset, "_reshuffle_each_iteration", True)
    yield Stage(name, bool(reshuffles), frozenset(ops - _READ_ONLY))


def lasting_effect(dataset: tf.data.Dataset) -> str:
    """Why iterating once more would change what comes after; empty where it would not."""
    found = stages(dataset)
    if found is None:
        return "its parts are unknown to tfaccel in this version of TensorFlow"
    return next(filter(None, map(effect, found)), "")


def effect(stage: Stage, allowed: Container[str] = ()) -> str:
    """Why iterating over one stage once more would change what comes after, or nothing.

    Stateful operations that are `allowed` are known to be no cause.
    """
    ops = {op for op in stage.stateful_ops if op not in allowed}
    if stage.reshuffles:
        return "it shuffles anew in each iteration"
    if ops & _PYTHON:
        return "Python code makes its elements"
    return f"it has state ({', '.join(sorted(ops))})" if ops else ""


def dataset_of(iterator: Any) -> tf.data.Dataset | None:
    """The dataset that an iterator goes over; None where this TensorFlow doesn't tell."""
    found = getattr(iterator, "_dataset", None)
    return found if isinstance(found, tf.data.Dataset) else None
