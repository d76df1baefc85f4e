"""The function of a training loop: a `tf.function` of the user's own, or a step of Keras's."""

import abc
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfaccel.compat import tensorflow_private
from tfaccel.core.looped import Call

# Ops that call a function with a trace of its own.
_CALLS = {"PartitionedCall", "StatefulPartitionedCall"}


class UserFunction(abc.ABC):
    """A step as it is called, and how it is traced anew.

    Attributes:
        named: the Python function or loss by which the cache tells trainings apart.
        jit_compile: whether XLA compiles it.
    """

    named: Any
    jit_compile: bool

    @abc.abstractmethod
    def __call__(self, call: Call) -> Any:
        """Runs the step as the loop would."""

    @abc.abstractmethod
    def compiled(self, step: Callable[[Call], Any], jit_compile: bool) -> Callable[[Call], Any]:
        """Compiles another step as this one is."""

    @abc.abstractmethod
    def untraced(self, also: Callable[[], Any] | None = None) -> Callable[..., Any]:
        """A function that runs the step within another trace, without a trace of its own.

        Args:
            also: called at the step's end, within its trace; its result is returned, too.
        """

    @abc.abstractmethod
    def concrete(self, call: Call) -> Any:
        """The step's concrete function for a batch."""

    @abc.abstractmethod
    def traces(self) -> int:
        """How often it was traced."""


class LoopFunction(UserFunction):
    """A `tf.function` of the user's own.

    Args:
        function: with any options.
    """

    def __init__(self, function: Any):
        self._function = function
        self.named = function.python_function
        self.jit_compile = tensorflow_private.compiles_with_xla(function)

    def __call__(self, call: Call) -> Any:
        return self._function(*call.args, **call.kwargs)

    def compiled(self, step: Callable[[Call], Any], jit_compile: bool) -> Callable[[Call], Any]:
        # AutoGraph is for the user's function, which brings its own.
        compiled = jit_compile or None
        return tf.function(step, jit_compile=compiled, reduce_retracing=True, autograph=False)

    def untraced(self, also: Callable[[], Any] | None = None) -> Callable[..., Any]:
        if also is None:
            return tensorflow_private.untraced_copy(self._function)
        step, told = self.named, tf.autograph.experimental.do_not_convert(also)

        def with_more(*args: Any, **kwargs: Any) -> Any:
            return step(*args, **kwargs), told()

        return tensorflow_private.untraced_copy(self._function, with_more)

    def concrete(self, call: Call) -> Any:
        return self._function.get_concrete_function(*call.args, **call.kwargs)

    def traces(self) -> int:
        return int(self._function.experimental_get_tracing_count())


class BatchFunction(UserFunction):
    """A step of Keras's, compiled for batches of any number of samples.

    Args:
        step: `model.train_step`, or its like.
        jit_compile: whether XLA compiles it.
        named: the model's loss.
    """

    def __init__(self, step: Callable[[Any], Any], jit_compile: bool, named: Any = None):
        self.named = named
        self._step = step
        self.jit_compile = jit_compile
        self._any_size = _AnySize(lambda call: step(*call.args), jit_compile)

    def __call__(self, call: Call) -> Any:
        return self._any_size(call)

    def compiled(self, step: Callable[[Call], Any], jit_compile: bool) -> Callable[[Call], Any]:
        return _AnySize(step, jit_compile)

    def untraced(self, also: Callable[[], Any] | None = None) -> Callable[..., Any]:
        step = self._step
        return step if also is None else lambda *args: (step(*args), also())

    def concrete(self, call: Call) -> Any:
        return self._any_size.function(call).get_concrete_function()

    def traces(self) -> int:
        return self._any_size.traces()


class _AnySize:
    """Compiles a step once for all numbers of samples: the first dimension is left open.

    TensorFlow itself traces for the first size, and at the second one once more.

    Args:
        step: to compile.
        jit_compile: whether XLA does.
    """

    def __init__(self, step: Callable[[Call], Any], jit_compile: bool):
        self._step = step
        self._jit_compile = jit_compile or None
        self._functions: dict[Any, Any] = {}

    def __call__(self, call: Call) -> Any:
        leaves = [leaf for leaf in tf.nest.flatten(call) if leaf is not None]
        return self.function(call)(*leaves)

    def traces(self) -> int:
        counts = (f.experimental_get_tracing_count() for f in self._functions.values())
        return sum(map(int, counts))

    def function(self, call: Call) -> Any:
        """The compiled function for batches like this one; it takes all leaves but None."""
        specs = tf.nest.map_structure(open_spec, call)
        flat = tf.nest.flatten(specs)
        key = (repr(tf.nest.map_structure(lambda spec: spec is None, specs)), *flat)
        if key not in self._functions:
            self._functions[key] = self._compiled(specs, flat)
        return self._functions[key]

    def _compiled(self, specs: Call, flat: list[Any]) -> Any:
        def step(*leaves: Any) -> Any:
            given = iter(leaves)
            filled = [None if spec is None else next(given) for spec in flat]
            return self._step(tf.nest.pack_sequence_as(specs, filled))

        signature = [spec for spec in flat if spec is not None]
        return tf.function(
            step, input_signature=signature, jit_compile=self._jit_compile, autograph=False
        )


def open_spec(leaf: Any) -> Any:
    """The spec of a batch's leaf, its number of samples left open; None for no tensor."""
    if isinstance(leaf, tf.Tensor | np.ndarray | np.generic):
        dims = list(leaf.shape)
        return tf.TensorSpec([None, *dims[1:]] if dims else [], tf.as_dtype(leaf.dtype))
    if tf.is_tensor(leaf):  # ragged, sparse
        return tf.type_spec_from_value(leaf)
    return None


def calls_others(graph: Any) -> bool:
    """Whether a step calls functions that have traces of their own."""
    return any(operation.type in _CALLS for operation in graph.get_operations())
