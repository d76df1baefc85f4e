"""Which of the programs' variants a device runs."""

import dataclasses

from tfaccel.ops.kernels._opencl.runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Variant:
    """A way to compute a product: through local memory, or `high` rows in registers."""

    tiled: bool = False
    high: int = 8


def variant(at: Runtime) -> Variant:
    """That of a device: the one through local memory where that is memory of its own."""
    return Variant(tiled=at.device.type == "GPU")
