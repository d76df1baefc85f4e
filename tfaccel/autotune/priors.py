"""Which plan to try first, before anything is measured, and why.

A prior only orders the trials: what wins is measured. Each carries its reason.
"""

import dataclasses
from collections.abc import Callable, Collection

import keras

from tfaccel import passes
from tfaccel.core.plan import Pass, make_pass
from tfaccel.core.workload import Workload
from tfaccel.passes import step_batching


@dataclasses.dataclass(frozen=True)
class Prior:
    """A pass, and whether it is expected to pay.

    Attributes:
        make: the pass, configured for a workload.
        holds: whether it belongs into the first plan that is tried.
        reason: what was seen that says so.
    """

    make: Callable[[Workload], Pass]
    holds: Callable[[Workload], bool]
    reason: str


def _on_gpu(workload: Workload) -> bool:
    return workload.device.kind == "GPU"


def _has(*kinds: type[keras.layers.Layer]) -> Callable[[Workload], bool]:
    return lambda workload: any(isinstance(layer, kinds) for layer in workload.layers)


_has_recurrence = _has(keras.layers.RNN)
_has_attention = _has(keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_has_convolutions = _has(
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)

PRIORS: tuple[Prior, ...] = (
    Prior(
        lambda workload: passes.FusedNorm(),
        lambda workload: workload.training,
        "Keras 3 computes BatchNormalization by about ten ops; fused it is one (in predictions "
        "it is three, and mostly none, as it can be folded)",
    ),
    Prior(
        lambda workload: passes.FusedAttention(),
        _has_attention,
        "Keras 3 projects query, key and value apart, by einsums, and keeps all that a softmax's "
        "gradient needs; here it is few products, and one matrix is kept",
    ),
    Prior(
        lambda workload: passes.FusedActivation(),
        lambda workload: True,
        "TensorFlow makes GELU and SiLU of about five ops, and of ten in the gradient",
    ),
    Prior(
        lambda workload: passes.FusedOptimizer(),
        lambda workload: True,
        "Keras 3 updates each variable by about ten ops; fused it is one",
    ),
    Prior(
        lambda workload: passes.FusedRNN(),
        lambda workload: not _on_gpu(workload) and _has_recurrence(workload),
        "on a CPU Keras runs each time step of an LSTM as some twenty ops; compiled by XLA the "
        "whole loop is one",
    ),
    Prior(
        lambda workload: passes.FullPrecision(),
        lambda workload: not _on_gpu(workload),
        "a CPU without 16-bit instructions emulates them; a GPU without Tensor Cores wins memory "
        "by them, and some time",
    ),
    Prior(
        lambda workload: passes.MixedPrecision(),
        lambda workload: _on_gpu(workload) or not _has_recurrence(workload),
        "16-bit products run at twice the rate and more where the chip has them; recurrent "
        "cells on a CPU lose more by casts than they win",
    ),
    Prior(
        lambda workload: passes.ExactReductions(),
        lambda workload: False,
        "a step takes about as long; it serves the gradients of models written in bfloat16",
    ),
    Prior(
        lambda workload: passes.Layout(),
        lambda workload: not _on_gpu(workload) or workload.device.fast_dtype is not None,
        "CPU kernels want the channels last, and without oneDNN run no channels_first convolution; "
        "Tensor Cores read 16-bit images channels last, while cuDNN's float32 is at home in both",
    ),
    Prior(
        lambda workload: passes.Recompute(),
        lambda workload: False,
        "a second forward pass costs time; it serves memory",
    ),
    Prior(
        lambda workload: passes.XLA(jit_compile=not workload.model.jit_compile),
        lambda workload: (
            not workload.model.jit_compile
            and (
                _on_gpu(workload) or not (_has_convolutions(workload) or _has_recurrence(workload))
            )
        ),
        "XLA fuses elementwise chains, but on a CPU replaces oneDNN's convolutions by slow ones, "
        "and recurrent loops are faster by themselves; on a GPU Keras has turned it on already",
    ),
    Prior(
        lambda workload: passes.Kernels(),
        lambda workload: (
            workload.training and not _on_gpu(workload) and _has_convolutions(workload)
        ),
        "on a CPU TensorFlow has one algorithm for all convolutions, on a GPU cuDNN picks one; "
        "predictions try what costs no measuring first",
    ),
    Prior(
        step_batching.suited,
        lambda workload: True,
        "a small model loses more time between steps than in them; a large one is refused",
    ),
    Prior(
        lambda workload: passes.FoldedNorm(),
        lambda workload: not workload.training,
        "with fixed statistics a normalization is part of the convolution before it",
    ),
    Prior(
        lambda workload: passes.FrozenWeights(),
        lambda workload: not workload.training,
        "constants need not be read, and what hangs on them alone is computed once",
    ),
)


def expected(workload: Workload, names: Collection[str]) -> list[tuple[Pass, bool]]:
    """The passes to consider, in order, each with whether it is expected to pay.

    Args:
        workload: what is trained.
        names: the names of the passes allowed. Passes of the user's own have no
            prior and are expected to pay.
    """
    known = [(prior.make(workload), prior.holds(workload)) for prior in PRIORS]
    allowed = [(item, holds) for item, holds in known if item.name in names]
    own = [name for name in names if name not in {item.name for item, _ in known}]
    return [*allowed, *((make_pass(name), True) for name in own)]
