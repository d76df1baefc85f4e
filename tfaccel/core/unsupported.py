"""Why a pass or a kernel can't serve, and reasons that several passes have."""

import dataclasses
import enum
from collections.abc import Collection, Iterable
from typing import Any

from tfaccel.compat import keras_private
from tfaccel.measure.numerics import SIXTEEN_BITS

# The dtypes of layers that may be computed in float32 inside.
FLOAT32_OR_LESS = ("float32", *SIXTEEN_BITS)


class Refusal(enum.Enum):
    """The kind of a reason why a pass or kernel can't serve; an `Unsupported` has the words."""

    CASE = "case"  # an argument or a kind of layer that it does not serve
    SHAPE = "shape"  # groups, strides, dilation or a window that it has no code for
    NOTHING = "nothing"  # the model has nothing that it is for, so that there is nothing to regret
    NO_USE = "no use"  # what it does is done already, or would win nothing
    OWN_CODE = "own code"  # code of the user's stands where Keras's would be replaced
    SETTING = "setting"  # the user has set it otherwise
    DTYPE = "dtype"
    INPUTS = "inputs"  # what the model reads or gives is more than arrays of numbers
    STATE = "state"  # a layer keeps something from one call to the next
    LIMIT = "limit"  # it is more than can be held
    WRONG = "wrong"  # a library computes it wrong there
    RANDOM = "random"  # it would draw other random numbers
    SIZES = "sizes"  # batches differ in their sizes
    DEVICE = "device"
    REPLICAS = "replicas"
    TASK = "task"  # it is for training, for predictions, or for `fit` alone
    MISSING = "missing"  # something is not installed

    def __call__(self, cause: str, remedy: str = "") -> "Unsupported":
        """A refusal of this kind."""
        return Unsupported(cause, remedy, self)


@dataclasses.dataclass(frozen=True)
class Unsupported:
    """Why a pass cannot serve a workload, and what the user could do about it.

    Attributes:
        cause: one clause that names the layer, argument or device in the way.
        remedy: one clause that says what would let the pass in; may be empty.
        kind: the kind of the cause.
    """

    cause: str
    remedy: str = ""
    kind: Refusal = Refusal.CASE

    def __str__(self) -> str:
        return f"{self.cause}; {self.remedy}" if self.remedy else self.cause


def named(layer: Any) -> str:
    """A layer's name in messages, such as `layer 'dense' (Dense)`."""
    return f"layer {layer.name!r} ({type(layer).__name__})"


def kind_of(layer: Any, kinds: Iterable[type]) -> type | None:
    """The first of these classes that the layer is or derives from; None if it is of none."""
    return next((kind for kind in kinds if isinstance(layer, kind)), None)


def own_method(layer: Any, kind: type, *names: str) -> Unsupported | None:
    """The reason that a method of the layer is not `kind`'s, whose maths the pass knows."""
    own = keras_private.overridden(layer, kind, *names)
    return None if own is None else Refusal.OWN_CODE(f"{named(layer)} has a `{own}` of its own")


def is_reduced(layer: Any) -> bool:
    """Whether a layer computes in 16 bits, as it is configured at the moment."""
    return str(layer.compute_dtype) in SIXTEEN_BITS


def other_dtype(
    layer: Any, allowed: Collection[str] = FLOAT32_OR_LESS, remedy: str = "use float32 or less"
) -> Unsupported | None:
    """The reason that a layer computes in a dtype that is not allowed; None where it may."""
    if str(layer.compute_dtype) in allowed:
        return None
    return Refusal.DTYPE(f"{named(layer)} computes in {layer.compute_dtype}", remedy)
