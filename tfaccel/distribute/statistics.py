"""Running statistics that are the mean over all replicas, by one reduction a step."""

import functools
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

# By the names that Keras's normalisation layers give them.
STATISTICS = ("moving_", "renorm_")


class _Step(threading.local):
    """What a replica traces: the graph, and the statistics that it assigned there."""

    graph: Any = None
    assigned: dict[int, Any] | None = None


_step = _Step()


def averaged_statistics(next_creator: Callable[..., Any], **kwargs: Any) -> Any:
    """A variable creator: running statistics without an aggregation get the mean.

    Keras creates them without one, so that each replica would keep its own.
    """
    unset = kwargs.get("aggregation") in (None, tf.VariableAggregation.NONE)
    fixed = kwargs.get("trainable") is False
    if not (unset and fixed and _is_statistic(kwargs.get("name"), kwargs.get("dtype"))):
        return next_creator(**kwargs)
    variable = next_creator(**kwargs | {"aggregation": tf.VariableAggregation.MEAN})
    if isinstance(variable, tf.distribute.DistributedValues):
        variable.assign = functools.partial(_assign, weakref.ref(variable))
    return variable


def averaged_at_the_end(step: Callable[..., Any]) -> Callable[..., Any]:
    """A replica's step, as `tf.distribute.Strategy.run` takes it, with few reductions.

    TensorFlow averages a statistic when it is assigned. Each is a round of messages between
    workers, and a net has two for each normalisation layer. Inside this step an assignment
    changes the replica's own part, and the parts are averaged together when the step ends. As a
    mean is linear, the result is the same, also for a layer that is called several times.
    """

    def replica_step(*args: Any, **kwargs: Any) -> Any:
        if tf.executing_eagerly() or _step.assigned is not None:
            return step(*args, **kwargs)
        _step.graph, _step.assigned = tf.compat.v1.get_default_graph(), {}
        try:
            results = step(*args, **kwargs)
            _average(_step.assigned.values())
        finally:
            _step.graph = _step.assigned = None
        return results

    return replica_step


def _is_statistic(name: str | None, dtype: Any) -> bool:
    named = (name or "").rpartition("/")[2].startswith(STATISTICS)
    return named and dtype is not None and tf.as_dtype(dtype).is_floating


def _assign(reference: "weakref.ref[Any]", value: Any, *args: Any, **kwargs: Any) -> Any:
    variable = reference()
    assert variable is not None
    # A function that is traced inside of the step may be called again without being traced, so
    # what it assigns would not be seen.
    is_ours = _step.assigned is not None and _step.graph is tf.compat.v1.get_default_graph()
    part = _own_part(variable) if is_ours else None
    if part is None:
        return type(variable).assign(variable, value, *args, **kwargs)
    assert _step.assigned is not None
    _step.assigned[id(variable)] = variable
    return part.assign(value, *args, **kwargs)


def _own_part(variable: Any) -> tf.Variable | None:
    """This replica's variable; None outside of a replica, or where its number isn't known yet."""
    context = tf.distribute.get_replica_context()
    number = None if context is None else tf.get_static_value(context.replica_id_in_sync_group)
    return None if number is None else variable.values[int(number) % len(variable.values)]


def _average(assigned: Iterable[Any]) -> None:
    parts: dict[tf.DType, list[Any]] = {}
    for variable in assigned:
        parts.setdefault(variable.dtype, []).append(_own_part(variable))
    context = tf.distribute.get_replica_context()
    for same_dtype in parts.values():
        values = [part.read_value() for part in same_dtype]
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for part, mean in zip(same_dtype, means, strict=True):
            part.assign(mean)
