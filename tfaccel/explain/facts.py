"""What a layer runs as on TensorFlow, as far as its class and its arguments say."""

import dataclasses
from collections.abc import Mapping

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.system.device import Device

_LOOP = "a loop over time steps"
_ELEMENTWISE = "elementwise ops"
_NORM = "reductions and elementwise ops"
_BATCH_NORM = "statistics and elementwise ops"
_FUSED_BATCH_NORM = "FusedBatchNormV3"
_LOOPS = "loops by XLA"
_JOINED = "part of the loops before it"
_CONVOLUTION, _PRODUCT, _POOLING = "convolution", "matrix product", "pooling"

# By the class's name in keras.layers, as the oldest Keras lacks some of them.
_OPS: Mapping[str, str] = {
    **dict.fromkeys(("Dense", "EinsumDense"), _PRODUCT),
    **dict.fromkeys(("Conv1D", "Conv2D", "Conv3D"), _CONVOLUTION),
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
    "BatchNormalization": _BATCH_NORM,
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
# By class: some are exported under another name than their own (GroupedQueryAttention).
_KINDS = {
    getattr(keras.layers, name): op for name, op in _OPS.items() if hasattr(keras.layers, name)
}
# Ops to which it matters where the channels are.
_SPATIAL = {_CONVOLUTION, _POOLING, "depthwise convolution", "transposed convolution"}
# Ops for which the vendor's library has a kernel: on a CPU oneDNN, on a GPU the second.
_LIBRARIES = {
    _CONVOLUTION: "cuDNN",
    "transposed convolution": "cuDNN",
    _PRODUCT: "cuBLAS",
    _FUSED_BATCH_NORM: "cuDNN",
}


@dataclasses.dataclass(frozen=True)
class Runs:
    """How a layer runs.

    Attributes:
        op: the kind of work.
        library: whose kernel it is, where that is known.
        dtype: what it computes in.
        layout: where the channels are; empty where it does not matter.
    """

    op: str
    library: str = ""
    dtype: str = ""
    layout: str = ""

    def __str__(self) -> str:
        op = f"{self.op} ({self.library})" if self.library else self.op
        return ", ".join(part for part in (op, self.dtype, self.layout) if part)


def runs(layer: keras.layers.Layer, device: Device) -> Runs:
    """How the layer runs when nothing is done about it.

    >>> str(runs(keras.layers.Flatten(), Device("CPU", "some CPU")))
    'another view, no copy, float32'
    """
    base = _keras_kind(layer)
    dtype = str(layer.compute_dtype or "")
    if base is None or keras_private.overridden(layer, base, "call"):
        return Runs("ops of its own", dtype=dtype)
    op = _KINDS[base]
    if base.__name__ in ("LSTM", "GRU") and device.kind == "GPU" and not off_cudnn(layer):
        return Runs("CudnnRNNV3", "cuDNN", dtype)
    if op == _CONVOLUTION and getattr(layer, "groups", 1) > 1:
        # keras/src/backend/tensorflow/nn.py, conv: TensorFlow lacks them on CPUs.
        return Runs("grouped convolution", "XLA", dtype, layer.data_format)
    layout = getattr(layer, "data_format", None) or "" if op in _SPATIAL else ""
    return Runs(op, _library(op, device), dtype, layout)


def fused(normalisation: Runs, device: Device, by_loops: bool) -> Runs:
    """How a normalization layer, or an activation after it, runs under the pass `fused_norm`.

    Args:
        normalisation: how it runs without.
        device: where.
        by_loops: whether the pass compiles loops for batch normalization in float32.
    """
    if normalisation.op == _ELEMENTWISE:
        return dataclasses.replace(normalisation, op=_JOINED)
    if normalisation.op != _BATCH_NORM:
        return dataclasses.replace(normalisation, op=f"{normalisation.op}, a shorter gradient")
    if by_loops and normalisation.dtype == "float32":
        return dataclasses.replace(normalisation, op=_LOOPS)
    library = _library(_FUSED_BATCH_NORM, device)
    return dataclasses.replace(normalisation, op=_FUSED_BATCH_NORM, library=library)


def compiled_loop(recurrent: Runs) -> Runs:
    """How a recurrent layer runs that the pass `fused_rnn` serves."""
    return dataclasses.replace(recurrent, op="a loop that XLA compiles")


def by_xla(layer: Runs, device: Device) -> Runs:
    """How a layer runs in a step that XLA compiles: on a CPU by XLA's own kernels.

    On a GPU XLA calls cuDNN and cuBLAS, too.
    """
    own = device.kind == "CPU" and layer.library
    return dataclasses.replace(layer, library="XLA") if own else layer


def _keras_kind(layer: keras.layers.Layer) -> type | None:
    """The class of Keras's own that the layer is or derives from, if the table has it."""
    return next((base for base in type(layer).__mro__ if base in _KINDS), None)


def _library(op: str, device: Device) -> str:
    if op not in _LIBRARIES:
        return ""
    if device.kind == "GPU":
        return _LIBRARIES[op]
    return {True: "oneDNN", False: "Eigen", None: ""}[onednn_is_on()]


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
