"""What is expected of a pass before anything is measured."""

import dataclasses

import keras

CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """Whether a pass is expected to pay. It orders the trials; what wins is measured.

    Attributes:
        pays: whether the pass belongs into the first plan that is tried.
        reason: why it usually does, or does not.
    """

    pays: bool = True
    reason: str = ""
