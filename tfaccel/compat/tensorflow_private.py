"""Private TensorFlow API, each use behind a check that names what a future version moved.

oneDNN's operations are in `tfaccel.compat.onednn`, what a dataset is made of in
`tfaccel.compat.tf_data`, Keras's private API in `tfaccel.compat.keras_private`.
"""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import tensorflow as tf

from tfaccel.compat.patching import instance_attribute


@functools.cache
def onednn_is_on() -> bool | None:
    """Whether TensorFlow takes oneDNN's kernels on this CPU; None if it doesn't tell.

    No public function does: the platform, the build, the CPU and an environment
    variable decide (tensorflow/core/util/port.cc).
    """
    try:
        port = importlib.import_module("tensorflow.python.util._pywrap_util_port")
        return bool(port.IsMklEnabled())
    except (ImportError, AttributeError):
        return None


def variable_dtype(handle: tf.Tensor) -> tf.DType | None:
    """The dtype of the variable behind a resource handle; None for tables and iterators."""
    data = getattr(handle, "_handle_data", None)
    if data is None or not data.is_set or not data.shape_and_type:
        return None
    return tf.as_dtype(data.shape_and_type[0].dtype)


def part_of_replica(spec: Any) -> Any:
    """The first replica's part of the spec of a distributed value; any other spec itself.

    The type of such a spec has no public name; its parts are what it serializes to.
    """
    if type(spec).__name__ != "PerReplicaSpec":
        return spec
    parts = getattr(spec, "_value_specs", None)
    if not parts:
        raise RuntimeError(
            "tfaccel can't tell a replica's part of a distributed batch: this TensorFlow keeps "
            "PerReplicaSpec's parts elsewhere. Please report it with the version of TensorFlow."
        )
    return parts[0]


def nn_ops() -> ModuleType:
    """The module whose functions make the operations of `tf.nn`."""
    return importlib.import_module("tensorflow.python.ops.gen_nn_ops")


def profiler_protobuf() -> ModuleType:
    """The module with TensorFlow's classes for profiler traces; ImportError where there is none."""
    return importlib.import_module("tensorflow.tsl.profiler.protobuf.xplane_pb2")


def xla_protobuf() -> ModuleType | None:
    """The module with XLA's classes for programs; None where this TensorFlow has none."""
    try:
        return importlib.import_module("tensorflow.compiler.xla.service.hlo_pb2")
    except ImportError:
        return None


def untraced_copy(function: Any, python_function: Any = None) -> Any:
    """A `tf.function` like this one that was traced nowhere, of another Python function if given.

    No public function makes one with all its options (AutoGraph's, XLA's, its signature).
    """
    clone = getattr(function, "_clone", None)
    if clone is None:
        raise RuntimeError(
            "tfaccel can't trace a tf.function anew: this TensorFlow's have no _clone. "
            "Please report it with the version of TensorFlow."
        )
    return clone(python_function)


@functools.cache
def feeds_captures_in_loops() -> bool:
    """From now on values that a function gets when it is called reach calls in loops and branches.

    Collective operations have such a value: the number that tells them apart. A function that is
    called while another is traced has that one ask for it, which is asked in turn. But in the
    body of a `tf.while_loop` TensorFlow makes a placeholder that nobody feeds ("You must feed a
    value for placeholder tensor"), so that a step of several replicas could stand in no loop. Here
    the function around asks, and the body captures the answer. What worked without stays as it was.

    Returns:
        False where this TensorFlow does that in another way.
    """
    graphs = importlib.import_module("tensorflow.python.framework.func_graph")
    kind: Any = getattr(graphs, "FuncGraph", None)
    own = getattr(kind, "capture_call_time_value", None)
    if own is None:
        return False

    @functools.wraps(own)
    def capture(graph: Any, *args: Any, **kwargs: Any) -> Any:
        around = _around(graph)
        if around is graph:
            return own(graph, *args, **kwargs)
        with around.as_default():
            return own(around, *args, **kwargs)

    kind.capture_call_time_value = capture  # for good: there is no end to what is traced
    return True


def heartbeats(timeout_seconds: float) -> contextlib.AbstractContextManager[None]:
    """Inside, who joins other workers takes one for dead that was silent for so long.

    TensorFlow's own timeout is 10 s, beside a second in which it looks and what ending a process
    takes; no public function changes it. A cluster that was told of a timeout before keeps that.
    """
    try:
        context = _part_of_tensorflow("python.eager.context").context()
        own = context.configure_coordination_service
    except (ImportError, AttributeError):  # this TensorFlow has another way
        return contextlib.nullcontext()
    milliseconds = round(1e3 * timeout_seconds)
    configure = functools.partial(own, heartbeat_timeout_in_ms=milliseconds)
    return instance_attribute(context, "configure_coordination_service", configure)


def compiles_with_xla(function: Any) -> bool:
    """Whether a `tf.function` was made with `jit_compile=True`."""
    return bool(getattr(function, "_jit_compile", False))


def traced_for_xla() -> bool | None:
    """Whether what is traced at the moment becomes part of what `jit_compile=True` compiles.

    No public function tells. None where this TensorFlow keeps it elsewhere.
    """
    try:
        util = _part_of_tensorflow("python.ops.control_flow_util")
        return bool(util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph()))
    except (ImportError, AttributeError):
        return None


def refuse_saving(cause: str) -> None:
    """Has the function that is traced at the moment raise ValueError where it is saved.

    TensorFlow writes calls of Python into a SavedModel, which fails where it is loaded. The
    function gets an input beside its arguments, whose value is asked for at each call and, which
    is what matters, where the function is written. TensorFlow's loops can't have one in their
    gradients: it is for what runs forward.
    """
    graph = _around(tf.compat.v1.get_default_graph())
    capture = getattr(graph, "capture_call_time_value", None)
    if capture is None:  # no function is traced, or this TensorFlow has another way
        return
    context = _part_of_tensorflow("python.saved_model.save_context")

    def value() -> tf.Tensor:
        if context.in_save_context():
            raise ValueError(cause)
        return _anything()

    capture(value, tf.TensorSpec((), tf.bool), key=cause)


@functools.cache
def _anything() -> tf.Tensor:
    return tf.constant(True)


@functools.cache  # which also keeps AutoGraph out, where a function of the user's is traced
def _part_of_tensorflow(name: str) -> ModuleType:
    return importlib.import_module(f"tensorflow.{name}")


@contextlib.contextmanager
def gradients_let_go(graph: tf.Graph, is_alone: bool = True) -> Iterator[None]:
    """Has TensorFlow forget, at the end of a block, the custom gradients that were made in it.

    It keeps each gradient function of `tf.custom_gradient` for good, under a name, and with it
    the graph around it. Only who differentiates that graph once more looks for the name: that
    must not happen after the block. What was made in the graphs of other functions stays, as
    those may be called, and differentiated, from elsewhere.

    Args:
        graph: the graph that is traced in the block.
        is_alone: whether nothing else is traced in that graph beside; else nothing is forgotten.
    """
    registry = gradient_registry() if is_alone else {}
    before = set(registry)
    try:
        yield
    finally:
        for name in registry.keys() - before:
            found = registry.get(name) or {}
            if name.startswith(_CUSTOM) and _is_made_in(found.get("type"), graph):
                registry.pop(name, None)


# tensorflow/python/ops/custom_gradient.py, generate_name
_CUSTOM = "CustomGradient-"
# Parts of a graph rather than functions: tensorflow/python/ops/control_flow_v2_func_graphs.py
_PARTS = ("CondBranchFuncGraph", "WhileBodyFuncGraph", "WhileCondFuncGraph")


def gradient_registry() -> dict[str, Any]:
    """The gradient functions by name; an empty stand-in where a TensorFlow keeps them elsewhere."""
    ops = importlib.import_module("tensorflow.python.framework.ops")
    found = getattr(getattr(ops, "gradient_registry", None), "_registry", None)
    return found if isinstance(found, dict) else {}


def _is_made_in(function: Any, graph: tf.Graph) -> bool:
    """Whether a gradient function holds tensors of the graph, or of a branch or loop in it."""
    held = [*_held_by(function)]
    held += [item for inner in held if callable(inner) for item in _held_by(inner)]
    for item in held:
        for tensor in item if isinstance(item, list | tuple) else (item,):
            if isinstance(tensor, tf.Tensor) and _around(getattr(tensor, "graph", None)) is graph:
                return True
    return False


def _held_by(function: Any) -> Iterator[Any]:
    """What a function finds in its closure."""
    for cell in getattr(function, "__closure__", None) or ():
        with contextlib.suppress(ValueError):  # an empty cell
            yield cell.cell_contents


def _around(graph: Any) -> Any:
    """The function's graph that a branch or a loop's body is in; any other graph itself.

    Those of gradients have types of their own, derived from the others.
    """
    while any(kind.__name__ in _PARTS for kind in type(graph).__mro__):
        graph = getattr(graph, "outer_graph", None)
    return graph
