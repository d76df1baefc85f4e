"""Private TensorFlow API, each use behind a check that names what a future version moved.

oneDNN's operations are in `tfaccel.compat.onednn`, what a dataset is made of in
`tfaccel.compat.tf_data`, Keras's private API in `tfaccel.compat.keras_private`.
"""

import functools
import importlib
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
