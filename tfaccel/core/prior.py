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
    """Whether a pass is expected to pay. It orders the trials; what wins is measured."""

    pays: bool = True  # whether the pass belongs into the first plan that is tried
    reason: str = ""  # why it usually does, or does not
    # How many times faster a step that it serves usually becomes by it. What was measured on other
    # models corrects it (`tfaccel.autotune.expected.expectation`).
    gain: float = 1.05
    prepare_seconds: float = 0.0  # what it takes to get ready, beside the trace

    @property
    def expected_gain(self) -> float:
        """The gain where the pass pays; a loss where it does not."""
        return self.gain if self.pays else min(self.gain, 0.95)
