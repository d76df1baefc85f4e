"""Tensors whose channels come second, and the same values with the channels last."""

import contextlib
import dataclasses
from typing import Any

import tensorflow as tf

from tfaccel.compat.patching import instance_attribute

# An attribute of tensors, as Keras's masks are, so that it lives as long as the tensor.
_MARK = "_tfaccel_channels_last"


@dataclasses.dataclass(frozen=True)
class _Mark:
    """Says in which run of a graph of layers a tensor was made, and what it is with channels last.

    Both are None in other code.
    """

    run: object | None
    channels_last: tf.Tensor | None


class Flow:
    """Gives each followed layer its input with the channels last, and its output back.

    Every tensor between two layers is what the user's model says, channels second;
    a layer that is followed transposes it, computes, and transposes back. A pair of
    transposes that undo each other is removed by TensorFlow's graph optimizer (and
    by XLA), forward and backward, so that transposes remain at the edges only. As
    the tensors in between exist, whatever else looks at them is right: another
    layer, a metric, a gradient with respect to them.

    Where two layers read one tensor, sharing one transpose lets their gradients meet
    with the channels last. But a transpose from before a `tape.watch` of that tensor
    is no part of what the tape sees. So it is shared only between layers that Keras
    itself calls one after the other, in a Functional or Sequential model, and made
    where the tensor is made, so that any tape sees both or neither.
    """

    def __init__(self) -> None:
        self._run: object | None = None

    def graph_run(self) -> contextlib.AbstractContextManager[None]:
        """A block in which Keras runs a graph of layers; a nested run is part of the outer one."""
        return instance_attribute(self, "_run", object() if self._run is None else self._run)

    def user_code(self) -> contextlib.AbstractContextManager[None]:
        """A block in which a user's code runs, which may do anything with tensors."""
        return instance_attribute(self, "_run", None)

    def knows(self, x: Any) -> bool:
        """Whether a followed layer made this tensor."""
        return hasattr(x, _MARK)

    def last(self, x: tf.Tensor) -> tf.Tensor:
        """`x` of shape (batch, channels, ...) as (batch, ..., channels)."""
        mark = getattr(x, _MARK, None)
        if mark is not None and self._run is not None and mark.run is self._run:
            return mark.channels_last
        return _channels_last(x)

    def first(self, y: tf.Tensor) -> tf.Tensor:
        """`y` of shape (batch, ..., channels) as (batch, channels, ...)."""
        rank = y.shape.rank
        x = tf.transpose(y, [0, rank - 1, *range(1, rank - 1)])
        setattr(x, _MARK, _Mark(self._run, _channels_last(x) if self._run else None))
        return x


def _channels_last(x: tf.Tensor) -> tf.Tensor:
    return tf.transpose(x, [0, *range(2, x.shape.rank), 1])
