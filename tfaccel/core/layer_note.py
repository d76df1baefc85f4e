"""How a layer runs, without and with a pass, in words."""

import dataclasses

from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.system.device import Device

CONVOLUTION, PRODUCT = "convolution", "matrix product"
FUSED_BATCH_NORM = "FusedBatchNormV3"
# Ops for which the vendor's library has a kernel: on a CPU oneDNN, on a GPU the second.
_LIBRARIES = {
    CONVOLUTION: "cuDNN",
    "transposed convolution": "cuDNN",
    PRODUCT: "cuBLAS",
    FUSED_BATCH_NORM: "cuDNN",
}


@dataclasses.dataclass(frozen=True)
class Runs:
    """How a layer runs: the work, whose kernel it is, its dtype, and where the channels are.

    An attribute that is unknown, or does not matter, is empty.
    """

    op: str
    library: str = ""
    dtype: str = ""
    layout: str = ""

    def __str__(self) -> str:
        op = f"{self.op} ({self.library})" if self.library else self.op
        return ", ".join(part for part in (op, self.dtype, self.layout) if part)

    def replaced(self, **changes: str) -> "Runs":
        """A copy with some attributes changed."""
        return dataclasses.replace(self, **changes)

    def extended(self, more: str) -> "Runs":
        """A copy with more words on its work; `more` may be empty."""
        return self.replaced(op=f"{self.op}, {more}") if more else self


@dataclasses.dataclass(frozen=True)
class LayerNote:
    """How a layer runs under a pass, and a clause for each thing that the pass left."""

    runs: Runs
    why_not: tuple[str, ...] = ()


def library(op: str, device: Device) -> str:
    """The library whose kernel computes an op on a device; empty where unknown."""
    if op not in _LIBRARIES:
        return ""
    if device.kind == "GPU":
        return _LIBRARIES[op]
    return {True: "oneDNN", False: "Eigen", None: ""}[onednn_is_on()]
