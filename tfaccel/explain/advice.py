"""What of a layer's own arguments keeps it from running faster."""

from collections.abc import Callable, Collection
from typing import Any

import keras

from tfaccel.explain.facts import off_cudnn
from tfaccel.system.device import Device

# Products on Tensor Cores want sizes in multiples of 8 (16 bytes of 16-bit numbers):
# https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html
_TENSOR_CORE_MULTIPLE = 8
# A Dense layer is called large when it has as many weights as this, and half of the model's.
_LARGE_DENSE = 1_000_000


def advice(
    layer: keras.layers.Layer, device: Device, model_weights: int, served: Collection[str] = ()
) -> list[str]:
    """A clause for each thing that keeps the layer slow, with a remedy where there is one.

    Args:
        layer: the layer.
        device: where it runs.
        model_weights: how many weights the whole model has.
        served: the names of the passes that serve the layer, so that what it lacks is there.
    """
    lacks = [rule for name, rule in _LACKS.items() if name not in served]
    said = [rule(layer, device) for rule in (*_RULES, *lacks)]
    said.append(_large_dense(layer, model_weights))
    return [text for text in said if text]


def _recurrence(layer: keras.layers.Layer, device: Device) -> str:
    if not isinstance(layer, keras.layers.LSTM | keras.layers.GRU):
        return ""
    if device.kind == "CPU":
        return "a CPU has no kernel for the whole sequence"
    causes = off_cudnn(layer)
    return f"{' and '.join(causes)} keeps it off cuDNN's kernel" if causes else ""


def _odd_width(layer: keras.layers.Layer, device: Device) -> str:
    if device.kind != "GPU" or device.fast_dtype is None:
        return ""
    for name in ("filters", "units", "key_dim"):
        width = getattr(layer, name, None)
        if isinstance(width, int) and width % _TENSOR_CORE_MULTIPLE:
            wider = -(-width // _TENSOR_CORE_MULTIPLE) * _TENSOR_CORE_MULTIPLE
            return (
                f"{name}={width} is no multiple of {_TENSOR_CORE_MULTIPLE}, which Tensor Cores "
                f"want; {wider} may cost no more"
            )
    return ""


def _channels_first(layer: keras.layers.Layer, device: Device) -> str:
    if device.kind != "CPU" or getattr(layer, "data_format", None) != "channels_first":
        return ""
    return "a CPU's kernels take channels last; build it with data_format='channels_last'"


def _float64(layer: keras.layers.Layer, device: Device) -> str:
    if str(layer.compute_dtype) != "float64":
        return ""
    return "float64 runs at half the rate of float32 and less; build it with dtype='float32'"


def _attention(layer: keras.layers.Layer, device: Device) -> str:
    if not isinstance(layer, keras.layers.MultiHeadAttention):
        return ""
    return "Keras has no fused attention on TensorFlow"


def _groups(layer: keras.layers.Layer, device: Device) -> str:
    if not getattr(layer, "groups", 1) > 1 or not hasattr(layer, "kernel_size"):
        return ""
    return "Keras compiles a grouped convolution by XLA, by itself"


def _large_dense(layer: keras.layers.Layer, model_weights: int) -> str:
    if not isinstance(layer, keras.layers.Dense) or not layer.built:
        return ""
    own = layer.count_params()
    if own < _LARGE_DENSE or 2 * own < model_weights:
        return ""
    return (
        f"holds {own / model_weights:.0%} of the model's weights, which each step reads and "
        "updates; fewer inputs (pooling in place of Flatten) make it smaller"
    )


_RULES: tuple[Callable[[Any, Device], str], ...] = (
    _odd_width,
    _channels_first,
    _float64,
    _groups,
)
# What Keras lacks for a layer, by the pass that has it.
_LACKS: dict[str, Callable[[Any, Device], str]] = {
    "fused_rnn": _recurrence,
    "fused_attention": _attention,
}
