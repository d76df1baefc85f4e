"""An OpenCL device's product: for GPUs that TensorFlow can't use."""

import dataclasses
import functools
import threading
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from tfaccel.compat import tensorflow_private
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.ops.kernels import _reference
from tfaccel.ops.kernels._kernel import kernels_of
from tfaccel.ops.kernels._opencl import has_gpu, is_full, missing, products
from tfaccel.ops.kernels._spec import DIRECTIONS, CallSpec
from tfaccel.system import notices

_OPS = ("conv1d", "conv2d", "depthwise_conv2d", "matmul")
_DTYPES = ("float32", "float16")
# A call of a device from Python takes about 0.1 ms; a small machine does this much meanwhile.
_LEAST_FLOPS = 2e7
_IN_XLA = Refusal.SETTING(
    "it is a call of Python, which XLA can't compile",
    "leave it out of what jit_compile=True compiles",
)
_SAVED = Refusal.TASK(
    "the kernel 'opencl' is a call of Python, which no SavedModel can hold",
    "export a model without kernel='opencl'",
)


def _refusal(spec: CallSpec) -> Unsupported | None:
    if spec.dtype not in _DTYPES:
        return Refusal.DTYPE(f"it is for float32 and float16, not {spec.dtype}")
    if tf.distribute.get_strategy().num_replicas_in_sync > 1:
        return Refusal.REPLICAS("replicas would take turns on one OpenCL device", "use one replica")
    if tensorflow_private.traced_for_xla():
        return _IN_XLA
    return missing()


def _unasked(spec: CallSpec) -> Unsupported | None:
    if spec.device.kind == "GPU":
        return Refusal.NO_USE("TensorFlow has a GPU of its own")
    if not has_gpu():
        return Refusal.DEVICE("no OpenCL device is a GPU", 'Kernels(families=("opencl",)) tries it')
    if spec.flops < _LEAST_FLOPS:
        return Refusal.NO_USE("it is too small to pay for the copies to the device and back")
    return None


class Device:
    """Warns once of what went wrong, and knows whether the device may be asked again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.is_lost = False
        self.has_warned = False

    def failed(self, error: Exception) -> None:
        with self._lock:
            # A smaller call may find room, and so may the next one.
            self.is_lost = self.is_lost or not is_full(error)
            first, self.has_warned = not self.has_warned, True
        if first:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            notices.warn(f"tfaccel has TensorFlow compute what the OpenCL device failed at: {said}")


DEVICE = Device()
Compute = Callable[..., np.ndarray]


def _on_device(
    op: str, compute: Compute, by_tensorflow: Callable[..., tf.Tensor], *operands: tf.Tensor
) -> tf.Tensor:
    """A function of arrays as part of a graph; by TensorFlow where the device fails."""

    def run(*arrays: np.ndarray) -> np.ndarray:
        if not DEVICE.is_lost:
            try:
                return compute(*map(np.ascontiguousarray, arrays))
            except Exception as error:  # a driver's, and there is a way to go on
                DEVICE.failed(error)
        return by_tensorflow(*map(tf.constant, arrays)).numpy()

    # A profile shows the name.
    dtype, name = operands[0].dtype, f"opencl_{op}"
    return tf.numpy_function(run, operands, dtype, stateful=False, name=name)


@_reference.as_images
def _convolution(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
    # The device reads rows of weights, so those of the input's gradient are transposed before.
    is_turned = spec.direction == "input_gradient" and spec.op == "conv2d"
    turn = tf.linalg.matrix_transpose if is_turned else tf.identity

    def compute(a: np.ndarray, b: np.ndarray, *shape: np.ndarray) -> np.ndarray:
        made = _sizes(spec, a, *shape)
        if 0 in (*made, a.size, b.size):
            return np.zeros(made, a.dtype)
        found = products.convolution(spec, a, b, made)
        return _summed(found) if spec.direction == "weight_gradient" else found

    def by_tensorflow(a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
        return _reference.call(spec, a, turn(b), *shape)

    return _on_device(spec.op, compute, by_tensorflow, a, turn(b), *shape)


def _sizes(spec: CallSpec, a: np.ndarray, shape: np.ndarray | None = None) -> tuple[int, ...]:
    """The result's shape, all sizes known."""
    if shape is not None:
        return tuple(int(n) for n in shape)
    return tuple(n or 0 for n in dataclasses.replace(spec, x=a.shape).y)


def _matmul(
    a: tf.Tensor, b: tf.Tensor, transpose_a: bool = False, transpose_b: bool = False
) -> tf.Tensor:
    if transpose_a and a.shape.rank == 2:
        by_tensorflow = functools.partial(tf.matmul, transpose_a=True)
        return _on_device("matmul", _crossed, by_tensorflow, a, b)
    a = tf.linalg.matrix_transpose(a) if transpose_a else a
    b = tf.linalg.matrix_transpose(b) if transpose_b else b
    return _on_device("matmul", _multiplied, tf.matmul, a, b)


def _crossed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if 0 in (a.size, b.size):
        return np.zeros((a.shape[1], b.shape[1]), a.dtype)
    return _summed(products.crossed(a, b))


def _multiplied(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    shape = (*batch, a.shape[-2], b.shape[-1])
    if 0 in (*shape, a.size, b.size):
        return np.zeros(shape, a.dtype)
    whole = [np.broadcast_to(one, (*batch, *one.shape[-2:])) for one in (a, b)]
    first, second = (np.ascontiguousarray(x).reshape(-1, *x.shape[-2:]) for x in whole)
    return products.matrices(first, second).reshape(shape)


def _summed(parts: np.ndarray) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return parts.sum(0, dtype=np.float32).astype(parts.dtype)


_product = _reference.products_by(_matmul)


def _run(spec: CallSpec, a: tf.Tensor, b: tf.Tensor, *shape: tf.Tensor) -> tf.Tensor:
    if spec.direction == "forward":
        tensorflow_private.refuse_saving(str(_SAVED))
    made = (_product if spec.op == "matmul" else _convolution)(spec, a, b, *shape)
    return tf.ensure_shape(made, spec.result)


KERNELS = kernels_of(
    dict.fromkeys(DIRECTIONS, _run),
    _OPS,
    name="opencl",
    unsupported=_refusal,
    unasked=_unasked,
    summary="an OpenCL device's product, in float32",
    source="https://cnugteren.github.io/tutorial/pages/page1.html",
    in_xla=False,
    in_python=True,
)
