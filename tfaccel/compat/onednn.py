"""oneDNN's kernels by name, where TensorFlow has them built in and leaves them off.

TensorFlow's builds for CPUs have two sets of kernels, Eigen's and oneDNN's. Whether it takes
oneDNN's is decided once a process: yes on CPUs with AVX512-VNNI, AVX512-BF16 or AMX, no on
others (tensorflow/core/util/port.cc), where they are not used, though often the faster ones.
While TensorFlow optimizes a graph, it names oneDNN's operations in place of its own
(tensorflow/core/common_runtime/mkl_layout_pass.cc); a graph that is made with these names
from the start runs them whatever was decided.
"""

import functools
import os
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.system.device import read_cpu

# The label that the kernels are registered under (tensorflow/core/graph/mkl_graph_util.h).
_LABEL = "MklNameChangeOp"
_VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
# What a build has if it has any, on inputs as small as can be.
SAMPLE = "_MklMatMul"
# Instructions that oneDNN needs for any operation of bfloat16; the last one is ARM's:
# https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html
_BFLOAT16_FLAGS = frozenset({"avx512f", "avx_ne_convert", "avx10_2", "bf16"})


def takes_bfloat16() -> bool:
    """Whether operations of bfloat16 are oneDNN's: it is on, and this CPU has the instructions."""
    return bool(onednn_is_on() and read_cpu().flags & _BFLOAT16_FLAGS)


def obstacle() -> str | None:
    """Why oneDNN's kernels are not to be called by name, as a clause; None where they may be."""
    if onednn_is_on():
        return "TensorFlow takes oneDNN's kernels by itself on this CPU"
    if os.environ.get(_VARIABLE) == "0":
        return f"{_VARIABLE}=0 asks for none of oneDNN's kernels"
    return missing()


@functools.cache
def missing() -> str | None:
    """Why this build has no such kernels that run; None if it has."""
    one = tf.ones((1, 1))
    try:
        right = call(SAMPLE, (one, one), T=tf.float32).numpy().item() == 1.0
    # What fails where they are missing depends on what is: an op, a kernel, an instruction.
    except Exception as error:
        return f"this TensorFlow has no kernels of oneDNN's that run ({type(error).__name__})"
    return None if right else "this TensorFlow's kernels of oneDNN's are wrong"


def call(op: str, inputs: Sequence[Any], **attributes: Any) -> tf.Tensor:
    """Runs one of oneDNN's operations on float32, or makes it part of a graph.

    Attributes are bools, floats, strings, dtypes or lists of ints. The result's shape may be
    unknown.

    Raises:
        ValueError: the build has no such operation, or not with these attributes.
        tf.errors.OpError: it can't compute this.

    Source: https://uxlfoundation.github.io/oneDNN

    >>> if missing() is None:
    ...     product = call("_MklMatMul", (tf.ones((2, 3)), tf.ones((3, 2))), T=tf.float32)
    ...     assert product.numpy().tolist() == [[3.0, 3.0], [3.0, 3.0]]
    """
    values = {name: _attribute(value) for name, value in attributes.items()}
    values["_kernel"] = _attribute(_LABEL)

    def made(*tensors: tf.Tensor) -> tf.Tensor:
        graph = tf.compat.v1.get_default_graph()
        # Named for what it is: TensorFlow refuses the operation's own name for its underscore.
        node = graph.create_op(op, tensors, [tf.float32], name="onednn", attrs=values)
        return node.outputs[0]

    tensors = [tf.convert_to_tensor(value) for value in inputs]
    run = tf.function(made, autograph=False) if tf.executing_eagerly() else made
    return run(*tensors)


def _attribute(value: Any) -> Any:
    message = tf.compat.v1.AttrValue()
    if isinstance(value, bool):
        message.b = value
    elif isinstance(value, float):
        message.f = value
    elif isinstance(value, str):
        message.s = value.encode()
    elif isinstance(value, tf.DType):
        message.type = value.as_datatype_enum
    else:
        message.list.i.extend(value)
    return message
