"""The passes. Adding one: its file, a line here, a row in tests/catalogue.py, docs/passes/."""

from tfaccel.core.plan import Pass
from tfaccel.passes.attention.fused_attention import FusedAttention
from tfaccel.passes.fused_activation import FusedActivation
from tfaccel.passes.inference.folded_norm import FoldedNorm
from tfaccel.passes.inference.frozen_weights import FrozenWeights
from tfaccel.passes.kernels.kernels import Kernels
from tfaccel.passes.layout.layout import Layout
from tfaccel.passes.normalization.fused_norm import FusedNorm
from tfaccel.passes.optimizer.fused_optimizer import FusedOptimizer
from tfaccel.passes.precision.exact_reductions import ExactReductions
from tfaccel.passes.precision.full_precision import FullPrecision
from tfaccel.passes.precision.mixed_precision import MixedPrecision
from tfaccel.passes.recompute.recompute import Recompute
from tfaccel.passes.recurrent.fused_rnn import FusedRNN
from tfaccel.passes.step_batching import StepBatching
from tfaccel.passes.xla import XLA

PASSES: tuple[type[Pass], ...] = (
    FusedNorm,
    FusedAttention,
    FusedActivation,
    FusedOptimizer,
    FusedRNN,
    FullPrecision,
    MixedPrecision,
    ExactReductions,
    Layout,
    Recompute,
    XLA,
    Kernels,
    StepBatching,
)

# For predictions only: `tfaccel.accelerate` tries them beside those of the forward pass.
INFERENCE_PASSES: tuple[type[Pass], ...] = (FoldedNorm, FrozenWeights)

__all__ = [
    "INFERENCE_PASSES",
    "PASSES",
    "XLA",
    "ExactReductions",
    "FoldedNorm",
    "FrozenWeights",
    "FullPrecision",
    "FusedActivation",
    "FusedAttention",
    "FusedNorm",
    "FusedOptimizer",
    "FusedRNN",
    "Kernels",
    "Layout",
    "MixedPrecision",
    "Recompute",
    "StepBatching",
]
