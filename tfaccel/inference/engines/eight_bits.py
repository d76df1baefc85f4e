"""The samples on which an engine's quantizer calibrates, and the score of its results."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

# How many samples ranges are taken from, as NNCF has it
# (https://docs.openvino.ai, "Basic Quantization Flow").
CALIBRATION = 300
# How many samples are scored in one run.
_AT_ONCE = 64

Arrays = Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class EightBits:
    """Samples, and the score of outputs for them.

    Attributes:
        inputs: the flattened inputs of all samples, each an array with a row for each.
        score: the metric of flattened outputs for samples at some places; larger is better.
        max_drop: how much less than the model's own is allowed.
        in_time: whether there is time left to look for ops that 8 bits harm.
    """

    inputs: Arrays
    score: Callable[[Arrays, np.ndarray], float]
    max_drop: float
    in_time: Callable[[], bool] = lambda: True

    @property
    def count(self) -> int:
        """How many samples there are."""
        return len(self.inputs[0])

    def samples(self) -> Iterator[Arrays]:
        """The inputs of one sample after the other, as many as calibrating needs."""
        for row in range(min(self.count, CALIBRATION)):
            yield [array[row : row + 1] for array in self.inputs]

    def slices(self) -> list[slice]:
        """All samples, in pieces that are run at once."""
        return [slice(i, i + _AT_ONCE) for i in range(0, self.count, _AT_ONCE)]

    def scored(self, run: Callable[[Arrays], Arrays]) -> float:
        """The metric of what `run` predicts for all samples."""
        parts = [run([array[rows] for array in self.inputs]) for rows in self.slices()]
        joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
        return self.score(joined, np.arange(self.count))
