"""Sums of bfloat16 tensors whose only error is the rounding of their result.

Most of TensorFlow's kernels for CPUs add up in float32 and round once. A few add up in
bfloat16, where a sum stands still as soon as it is 256 times what is added: the gradient of
a bias over 32768 rows is off by 19 % of its norm, and by 87 % where the rows have a mean.
BUILD_NOTES.md has the table of all that were measured.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat.onednn import takes_bfloat16
from tfaccel.compat.patching import SharedContext, instance_attributes

Function = Callable[..., Any]

# Where sums are exact at present: graphs that are being traced, and threads that run eagerly.
_places: list[Any] = []


@contextlib.contextmanager
def exact_sums() -> Iterator[None]:
    """Sums of bfloat16 are exact in whatever this thread traces or runs inside the block.

    Keras's and users' layers look TensorFlow's functions up when they call them, so the functions
    are replaced inside the block. For other threads they act as usual, except for threads that
    trace the same graph (replicas).
    """
    place = _eager_place() if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    _places.append(place)
    try:
        with _replaced:
            yield
    finally:
        # By identity: the last one that was entered from here.
        del _places[max(i for i, other in enumerate(_places) if other is place)]


def _eager_place() -> Any:
    return threading.current_thread()


def _is_active() -> bool:
    if any(place is _eager_place() for place in _places):
        return True
    graph = None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()
    while graph is not None:
        if any(place is graph for place in _places):
            return True
        # The bodies of loops, and functions that the step calls.
        graph = getattr(graph, "outer_graph", None)
    return False


def _summed_exactly(plain: Function) -> Function:
    """`tf.nn.bias_add` whose gradient of the bias is a sum in float32, rounded once."""

    def bias_add(value: Any, bias: Any, data_format: str | None = None, name: Any = None) -> Any:
        rank = value.shape.rank if _is_bfloat16(value) else None
        if rank is None:
            return plain(value, bias, data_format, name)
        channel = 1 if (data_format or "").startswith("NC") else rank - 1
        axes = [axis for axis in range(rank) if axis != channel]

        @tf.custom_gradient
        def add(x: tf.Tensor, bias: tf.Tensor) -> Any:
            # reduce_sum adds bfloat16 up in float32, and takes less time than BiasAddGrad.
            return plain(x, bias, data_format, name), lambda dy: (dy, tf.reduce_sum(dy, axes))

        return add(value, tf.convert_to_tensor(bias, value.dtype))

    return bias_add


def _in_float32(plain: Function) -> Function:
    """A function that computes bfloat16 in float32, and so do its gradients."""

    def wide(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tf.nest.map_structure(_widened, (args, kwargs))
        return tf.cast(plain(*args, **kwargs), tf.bfloat16)

    return wide


def _widened(value: Any) -> Any:
    if isinstance(value, keras.Variable):
        value = tf.convert_to_tensor(value)  # in the dtype that its layer computes in
    return tf.cast(value, tf.float32) if _is_bfloat16(value) else value


def _is_bfloat16(value: Any) -> bool:
    return isinstance(value, tf.Tensor) and value.dtype == tf.bfloat16


# The module, the function's name, and what stands in for it.
_Entry = tuple[Any, str, Callable[[Function], Function]]
_ENTRIES: tuple[_Entry, ...] = (
    (tf.nn, "bias_add", _summed_exactly),
    (tf.math, "cumsum", _in_float32),
    (tf.math, "segment_sum", _in_float32),
    (tf.math, "unsorted_segment_sum", _in_float32),
)
# oneDNN's kernels for these add up in float32. TensorFlow's others don't, and take up to 70
# times as long as those for float32.
_ENTRIES_WITHOUT_ONEDNN: tuple[_Entry, ...] = tuple(
    (module, name, _in_float32)
    for module, names in (
        (tf.nn, ("convolution", "conv2d", "conv_transpose", "depthwise_conv2d")),
        (tf.nn, ("separable_conv2d", "avg_pool", "softmax")),
        (tf, ("einsum",)),
    )
    for name in names
)


def _replacing() -> contextlib.AbstractContextManager[None]:
    entries = _ENTRIES if takes_bfloat16() else _ENTRIES + _ENTRIES_WITHOUT_ONEDNN
    return instance_attributes(
        (module, name, _where_active(getattr(module, name), make)) for module, name, make in entries
    )


_replaced = SharedContext(_replacing)


def _where_active(plain: Function, make: Callable[[Function], Function]) -> Function:
    """`plain`, or `make(plain)` where an argument is bfloat16 and sums are to be exact."""
    exact = make(plain)

    def call(*args: Any, **kwargs: Any) -> Any:
        reduced = any(map(_is_bfloat16, (*args, *kwargs.values())))
        return (exact if reduced and _is_active() else plain)(*args, **kwargs)

    return call
