"""Running statistics that are the mean over all replicas, by one reduction a step."""

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat.patching import SharedContext, class_attribute

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
    changes the replica's own part, and the parts are averaged together: before weights are
    updated (`averaged_before_updates`), as a step may copy them afterwards, and when the step ends.
    As a mean is linear, the result is the same, also for a layer that is called several times.
    """

    def replica_step(*args: Any, **kwargs: Any) -> Any:
        if tf.executing_eagerly() or _step.assigned is not None:
            return step(*args, **kwargs)
        _step.graph, _step.assigned = tf.compat.v1.get_default_graph(), {}
        try:
            results = step(*args, **kwargs)
            _average_all()
        finally:
            _step.graph = _step.assigned = None
        return results

    return replica_step


def averaged_before_updates() -> contextlib.AbstractContextManager[None]:
    """Inside, a replica's statistics are averaged before an optimizer updates weights."""
    return _BEFORE_UPDATES


def _averaged_first(own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(own)
    def apply(*args: Any, **kwargs: Any) -> Any:
        if _is_open():
            _average_all()
        return own(*args, **kwargs)

    return apply


@contextlib.contextmanager
def _before_updates() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # Around an update of theirs, loss scales put a condition, in which nothing can be averaged.
        for kind in (keras.optimizers.Optimizer, keras.optimizers.LossScaleOptimizer):
            stack.enter_context(class_attribute(kind, "apply", _averaged_first(kind.apply)))
        yield


_BEFORE_UPDATES = SharedContext(_before_updates)


def _is_open() -> bool:
    """Whether a step is traced, and is not inside of a function of its own.

    That may be called again without being traced, so what it assigns would not be seen.
    """
    return _step.assigned is not None and _step.graph is tf.compat.v1.get_default_graph()


def _is_statistic(name: str | None, dtype: Any) -> bool:
    named = (name or "").rpartition("/")[2].startswith(STATISTICS)
    return named and dtype is not None and tf.as_dtype(dtype).is_floating


def _assign(reference: "weakref.ref[Any]", value: Any, *args: Any, **kwargs: Any) -> Any:
    variable = reference()
    assert variable is not None
    part = _own_part(variable) if _is_open() else None
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


def _average_all() -> None:
    """Averages what was assigned since the last time."""
    assert _step.assigned is not None
    parts: dict[tf.DType, list[Any]] = {}
    for variable in _step.assigned.values():
        parts.setdefault(variable.dtype, []).append(_own_part(variable))
    _step.assigned.clear()
    context = tf.distribute.get_replica_context()
    for same_dtype in parts.values():
        values = [part.read_value() for part in same_dtype]
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for part, mean in zip(same_dtype, means, strict=True):
            part.assign(mean)
