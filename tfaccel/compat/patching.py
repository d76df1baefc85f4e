"""Changing an attribute of an object for the length of a `with` block."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

_ABSENT = object()


class SharedContext:
    """A context that several threads are in: made and entered by the first, left by the last.

    `tf.distribute.MirroredStrategy` traces its replicas in threads that take turns in the middle
    of a step. What changes a model for the length of a trace must be there for all of them, and
    once.
    """

    def __init__(self, make: Callable[[], contextlib.AbstractContextManager[Any]]):
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._stack.enter_context(self._make())
            self._inside += 1

    def __exit__(self, *exception: Any) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._stack.close()


@contextlib.contextmanager
def instance_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Shadows `owner.name` by `value` in the instance, and nothing else.

    Writes to the instance's `__dict__`, past Keras's attribute tracking, so that a layer's `call`
    or an optimizer's `update_step` can be replaced while a step is traced. On leaving, the
    instance is exactly as it was: an attribute that came from the class comes from the class
    again.

    >>> layer = keras.layers.Dense(1)
    >>> with instance_attribute(layer, "call", lambda inputs: inputs):
    ...     inside = "call" in vars(layer)
    >>> inside, "call" in vars(layer)
    (True, False)
    """
    namespace = vars(owner)
    before = namespace.get(name, _ABSENT)
    namespace[name] = value
    try:
        yield
    finally:
        if before is _ABSENT:
            namespace.pop(name, None)
        else:
            namespace[name] = before


@contextlib.contextmanager
def instance_attributes(patches: Iterable[tuple[Any, str, Any]]) -> Iterator[None]:
    """Several `instance_attribute`s, each an owner, a name and a value, entered in order."""
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(instance_attribute(*patch))
        yield


@contextlib.contextmanager
def set_attribute(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets the property `owner.name` to `value`, and back on leaving.

    For public properties with a setter (`layer.dtype_policy`,
    `model.jit_compile`). Plain methods go through `instance_attribute`.
    """
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def class_attribute(owner: type, name: str, value: Any) -> Iterator[None]:
    """Sets `owner.name` to `value` for a class; on leaving it is inherited again if it was."""
    before = vars(owner).get(name, _ABSENT)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
