"""Right results of TensorFlow's operations for batches without samples.

A worker that is out of data, or a batch of fewer samples than replicas, leaves replicas with
an empty batch. While a step of several replicas is traced, or one under a plan, the functions
that make the operations which can't have one are replaced (see `tfaccel.compat.empty_batch`).
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from tfaccel.compat.empty_batch import filled
from tfaccel.compat.patching import SharedContext, class_attribute, instance_attribute
from tfaccel.compat.tensorflow_private import nn_ops, onednn_is_on

# In TensorFlow's generated functions, which all others call, gradients included.
_DEPTHWISE = ("depthwise_conv2d_native",)
_ONEDNN = ("conv2d", "conv3d", "max_pool", "max_pool_v2", "max_pool3d")
# Whole layers are replaced too: oneDNN adds the bias and applies the activation in the
# convolution, as long as nothing stands between them.
_LAYERS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)


def mended(on_cpu: bool) -> contextlib.AbstractContextManager[None]:
    """Inside, what is traced has the right results for empty batches.

    Args:
        on_cpu: whether some of it runs on a CPU, where oneDNN computes.
    """
    return _WITH_ONEDNN if on_cpu and onednn_is_on() else _PLAIN


@contextlib.contextmanager
def _replaced(functions: tuple[str, ...], layers: tuple[type, ...]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        made_by = nn_ops()
        for name in functions:
            own = getattr(made_by, name, None)
            if own is not None:
                stack.enter_context(instance_attribute(made_by, name, _filled(own)))
        for layer in layers:
            call = _filled_call(layer.call)  # type: ignore[attr-defined]
            stack.enter_context(class_attribute(layer, "call", call))
        yield


def _filled(own: Callable[..., Any]) -> Callable[..., Any]:
    """The function of one operation; its batch is the first argument, called `input`."""

    @functools.wraps(own)
    def run(input: Any, *args: Any, **kwargs: Any) -> Any:
        return filled(own, input, *args, **kwargs)

    return run


def _filled_call(own: Callable[..., Any]) -> Callable[..., Any]:
    """A layer's `call`."""

    @functools.wraps(own)
    def call(self: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if not _is_finite_everywhere(self.activation):
            return own(self, inputs, *args, **kwargs)
        return filled(functools.partial(own, self), inputs, *args, **kwargs)

    return call


def _is_finite_everywhere(activation: Any) -> bool:
    """Whether an activation is Keras's own, or a pass's in place of one.

    Any other may be no number at what a sample of zeros gives, and so may gradients then; it
    gets the empty batch. A pass leaves a partial function of its own.
    """
    if activation is None or any(activation is own for own in vars(keras.activations).values()):
        return True
    made_by = getattr(getattr(activation, "func", None), "__module__", None) or ""
    return made_by.startswith("tfaccel.")


# Replicas are traced in threads that take turns.
_PLAIN = SharedContext(lambda: _replaced(_DEPTHWISE, ()))
_WITH_ONEDNN = SharedContext(lambda: _replaced((*_DEPTHWISE, *_ONEDNN), _LAYERS))
