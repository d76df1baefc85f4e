"""How a layer runs on TensorFlow, and which of its arguments keep it from running faster."""

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_graphs, keras_private
from tfaccel.core.layer_note import CONVOLUTION, PRODUCT, Runs, library
from tfaccel.system.device import Device

_LOOP = "a loop over time steps"
_ELEMENTWISE = "elementwise ops"
_NORM = "reductions and elementwise ops"
_POOLING = "pooling"

# By the class's name in keras.layers, as the oldest Keras lacks some of them.
_OPS: Mapping[str, str] = {
    **dict.fromkeys(("Dense", "EinsumDense"), PRODUCT),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), CONVOLUTION),
    **dict.fromkeys(("DepthwiseConv1D", "DepthwiseConv2D"), "depthwise convolution"),
    **dict.fromkeys(("SeparableConv1D", "SeparableConv2D"), "depthwise and 1x1 convolution"),
    **dict.fromkeys(
        ("Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"), "transposed convolution"
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "TimeDistributed"), _LOOP),
    **dict.fromkeys(
        ("MultiHeadAttention", "GroupQueryAttention", "Attention"),
        "two batched products around a softmax",
    ),
    "BatchNormalization": "statistics and elementwise ops",
    **dict.fromkeys(
        ("LayerNormalization", "GroupNormalization", "RMSNormalization", "UnitNormalization"),
        _NORM,
    ),
    "Bidirectional": "two recurrent layers",
    "Embedding": "gather",
    **dict.fromkeys(
        (
            *(f"{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3)),
            *(f"Global{kind}Pooling{rank}D" for kind in ("Max", "Average") for rank in (1, 2, 3)),
        ),
        _POOLING,
    ),
    **dict.fromkeys(("Flatten", "Reshape"), "another view, no copy"),
    "Permute": "transpose",
    "Concatenate": "copy",
    **dict.fromkeys(
        (
            *("Activation", "ReLU", "LeakyReLU", "PReLU", "ELU", "Softmax", "Rescaling"),
            *("Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum", "Normalization"),
            *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "GaussianNoise"),
        ),
        _ELEMENTWISE,
    ),
    **dict.fromkeys(
        ("StringLookup", "IntegerLookup", "TextVectorization", "Hashing"), "table look-ups"
    ),
}
# Ops whose speed depends on where the channels are.
_SPATIAL = {CONVOLUTION, _POOLING, "depthwise convolution", "transposed convolution"}
# Products on Tensor Cores want sizes in multiples of 8 (16 bytes of 16-bit numbers):
# https://docs.nvidia.com/deeplearning/performance/dl-performance-matrix-multiplication/index.html
_TENSOR_CORE_MULTIPLE = 8
# A Dense layer is called large when it has as many weights as this, and half of the model's.
_LARGE_DENSE = 1_000_000
# Layers that often stand between a Flatten and a Dense layer.
_KEEPING_SIZES = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.LayerNormalization,
    keras.layers.ReLU,
)


def runs(layer: keras.layers.Layer, device: Device) -> Runs:
    """How the layer runs without any pass.

    >>> str(runs(keras.layers.Flatten(), Device("CPU", "some CPU")))
    'another view, no copy, float32'
    """
    name = _keras_kind(layer)
    dtype = str(layer.compute_dtype or "")
    if name is None or keras_private.overridden(layer, getattr(keras.layers, name), "call"):
        return Runs("ops of its own", dtype=dtype)
    op = _OPS[name]
    if name in ("LSTM", "GRU") and device.kind == "GPU" and not off_cudnn(layer):
        return Runs("CudnnRNNV3", "cuDNN", dtype)
    if op == CONVOLUTION and getattr(layer, "groups", 1) > 1:
        # keras/src/backend/tensorflow/nn.py, conv: TensorFlow lacks them on CPUs.
        return Runs("grouped convolution", "XLA", dtype, layer.data_format)
    layout = getattr(layer, "data_format", None) or "" if op in _SPATIAL else ""
    return Runs(op, library(op, device), dtype, layout)


def by_xla(layer: Runs, device: Device) -> Runs:
    """How a layer runs in a step that XLA compiles: on a CPU by XLA's own kernels.

    On a GPU XLA calls cuDNN and cuBLAS, too.
    """
    own = device.kind == "CPU" and layer.library
    return dataclasses.replace(layer, library="XLA") if own else layer


def _keras_kind(layer: keras.layers.Layer) -> str | None:
    """The name in `keras.layers` of the class that the layer is or derives from, if `_OPS` has it.

    The class itself may have another name, as GroupQueryAttention does.
    """
    known = {getattr(keras.layers, name, None): name for name in _OPS}
    return next((known[base] for base in type(layer).__mro__ if base in known), None)


def off_cudnn(layer: keras.layers.Layer) -> list[str]:
    """The arguments that keep an LSTM or GRU off cuDNN's kernel; empty when none does.

    Source: https://keras.io/api/layers/recurrent_layers/lstm/ and .../gru/
    """
    tanh = (keras.activations.tanh, keras.ops.tanh, tf.tanh)
    sigmoid = (keras.activations.sigmoid, keras.ops.sigmoid, tf.sigmoid)
    wrong = {
        "activation is not tanh": layer.activation not in tanh,
        "recurrent_activation is not sigmoid": layer.recurrent_activation not in sigmoid,
        f"recurrent_dropout={layer.recurrent_dropout}": bool(layer.recurrent_dropout),
        "unroll=True": bool(layer.unroll),
        "use_bias=False": not layer.use_bias,
        "reset_after=False": not getattr(layer, "reset_after", True),
        "use_cudnn=False": layer.use_cudnn is False,
    }
    return [cause for cause, holds in wrong.items() if holds]


def advice(
    layer: keras.layers.Layer, device: Device, model_weights: int, served: Collection[str] = ()
) -> list[str]:
    """A clause for each thing that keeps the layer slow, with a remedy where there is one.

    Args:
        layer: the layer.
        device: where it runs.
        model_weights: how many weights the whole model has.
        served: the names of the passes that serve the layer, whose advice is left out.
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
    how = " (pooling in place of Flatten)" if _reads_flattened(layer) else " or units"
    return (
        f"holds {own / model_weights:.0%} of the model's weights, which each step reads and "
        f"updates; fewer inputs{how} make it smaller"
    )


def _reads_flattened(layer: keras.layers.Layer) -> bool:
    """Whether a layer's input comes from a Flatten, as far as that is known."""
    maker = keras_graphs.maker_of(layer)
    while isinstance(maker, _KEEPING_SIZES):
        maker = keras_graphs.maker_of(maker)
    return isinstance(maker, keras.layers.Flatten)


_RULES: tuple[Callable[[Any, Device], str], ...] = (
    _odd_width,
    _channels_first,
    _float64,
    _groups,
)
# Advice on kernels that Keras lacks, by the pass that has them.
_LACKS: dict[str, Callable[[Any, Device], str]] = {
    "fused_rnn": _recurrence,
    "fused_attention": _attention,
}
