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


def compiles_with_xla(function: Any) -> bool:
    """Whether a `tf.function` was made with `jit_compile=True`."""
    return bool(getattr(function, "_jit_compile", False))


def traced_for_xla() -> bool:
    """Whether what is traced here will be compiled by XLA; also True where nobody can tell."""
    utilities = importlib.import_module("tensorflow.python.ops.control_flow_util")
    told = getattr(utilities, "GraphOrParentsInXlaContext", None)
    return told is None or bool(told(tf.compat.v1.get_default_graph()))


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
    registry = _gradient_registry() if is_alone else {}
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


def _gradient_registry() -> dict[str, Any]:
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
    """The function's graph that a branch or a loop's body is in; any other graph itself."""
    while type(graph).__name__ in _PARTS:
        graph = getattr(graph, "outer_graph", None)
    return graph
