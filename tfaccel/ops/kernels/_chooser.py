"""Who says which kernels compute the products of a model's layers."""

import dataclasses
from collections.abc import Callable

from tfaccel.ops.kernels._product import Choose
from tfaccel.ops.kernels._spec import CallSpec


@dataclasses.dataclass(frozen=True)
class Chooser:
    """Says which kernels compute the products of a model's layers.

    Attributes:
        wanted: told a layer's name and products of it, forward, says whether a kernel of
            tfaccel's is to compute any direction of them; if not, the layer's own code does.
        choose: which kernel computes a call.
    """

    wanted: Callable[[str, list[CallSpec]], bool]
    choose: Choose
