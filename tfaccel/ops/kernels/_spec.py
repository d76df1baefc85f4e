"""What a product of two tensors is, before it is decided how to compute it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

from tfaccel.system.device import Device, current_device

Direction = Literal["forward", "input_gradient", "weight_gradient"]
Shape = tuple[int | None, ...]

DIRECTIONS: tuple[Direction, ...] = ("forward", "input_gradient", "weight_gradient")
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
OPS = (*CONVOLUTIONS, "depthwise_conv2d", "matmul")
DTYPES = ("float16", "bfloat16", "float32", "float64")
ITEM_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}


@dataclasses.dataclass(frozen=True)
class CallSpec:
    """One direction of one product: all that a kernel may know before it runs.

    A product is bilinear: `y = x * w`. Its input gradient is made of `y`'s gradient and
    `w`, its weight gradient of `x` and `y`'s gradient. Convolutions have their channels
    last and `w` as Keras has it: `(*kernel, channels / groups, filters)`, for depthwise
    ones `(*kernel, channels, multiplier)`.

    Attributes:
        op: one of `OPS`.
        direction: one of `DIRECTIONS`.
        dtype: of all three tensors.
        x: the input's shape; None where a size is not known.
        w: the weights' shape.
        strides: of a convolution, by spatial dimension.
        padding: of a convolution, `"valid"` or `"same"`.
        dilation: of a convolution, by spatial dimension.
        groups: of a convolution.
        device: where it runs.
    """

    op: str
    direction: Direction
    dtype: str
    x: Shape
    w: Shape
    strides: tuple[int, ...] = ()
    padding: str = "valid"
    dilation: tuple[int, ...] = ()
    groups: int = 1
    device: Device = dataclasses.field(default_factory=current_device)

    def along(self, direction: Direction) -> "CallSpec":
        """The same product in another direction."""
        return dataclasses.replace(self, direction=direction)

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """A convolution's window, by spatial dimension."""
        return tuple(size or 0 for size in self.w[:-2])

    @property
    def y(self) -> Shape:
        """The output's shape."""
        if self.op == "matmul":
            return (*_broadcast(self.x[:-2], self.w[:-2]), self.x[-2], self.w[-1])
        sizes = zip(self.x[1:-1], self.kernel_size, self.strides, self.dilation, strict=True)
        spatial = (output_size(n, k, s, d, self.padding) for n, k, s, d in sizes)
        depthwise = self.op == "depthwise_conv2d"
        filters = _times(self.w[-2], self.w[-1]) if depthwise else self.w[-1]
        return (self.x[0], *spatial, filters)

    @property
    def operands(self) -> tuple[Shape, Shape]:
        """The shapes of the two tensors that this direction is made of."""
        pairs = {"forward": (self.x, self.w), "input_gradient": (self.y, self.w)}
        return pairs.get(self.direction, (self.x, self.y))

    @property
    def result(self) -> Shape:
        """The shape of what this direction makes."""
        made = {"forward": self.y, "input_gradient": self.x}
        return made.get(self.direction, self.w)

    @property
    def is_known(self) -> bool:
        """Whether every size is known."""
        return None not in (*self.x, *self.w)

    def fits(self, other: "CallSpec") -> bool:
        """Whether `other` is this call, where the sizes of both are known."""
        shapes = ((self.x, other.x), (self.w, other.w))
        same_sizes = all(
            len(a) == len(b) and all(n == m or None in (n, m) for n, m in zip(a, b, strict=True))
            for a, b in shapes
        )
        return same_sizes and dataclasses.replace(self, x=other.x, w=other.w) == other

    @property
    def flops(self) -> int:
        """Operations of this direction, a multiply-add being two; unknown sizes count as 1."""
        per_output = self.x[-1] if self.op == "matmul" else math.prod(_known(self.w[:-1]))
        if self.op == "depthwise_conv2d":
            per_output = math.prod(self.kernel_size)
        return 2 * math.prod(_known(self.y)) * (per_output or 1)

    @property
    def bytes(self) -> int:
        """What is read and written at least; unknown sizes count as 1."""
        elements = sum(math.prod(_known(shape)) for shape in (self.x, self.w, self.y))
        return elements * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        marks = [
            f"stride {_sizes(self.strides)}" if set(self.strides) - {1} else "",
            f"dilation {_sizes(self.dilation)}" if set(self.dilation) - {1} else "",
            f"{self.groups} groups" if self.groups > 1 else "",
            self.padding if self.strides else "",
        ]
        return ", ".join(
            [f"{self.op} {_sizes(self.x)} * {_sizes(self.w)}", *filter(None, marks), self.dtype]
        )


def output_size(
    size: int | None, kernel: int, stride: int, dilation: int, padding: str
) -> int | None:
    """A convolution's output along one dimension.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2

    >>> output_size(7, 3, 2, 1, "same"), output_size(7, 3, 2, 1, "valid")
    (4, 3)
    """
    if size is None:
        return None
    if padding == "same":
        return -(-size // stride)
    return max(0, -(-(size - dilation * (kernel - 1)) // stride))


def _known(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(1 if size is None else size for size in shape)


def _times(a: int | None, b: int | None) -> int | None:
    return None if a is None or b is None else a * b


def _broadcast(a: Shape, b: Shape) -> Shape:
    """The common shape of two batches; 1 goes with everything."""
    rank = max(len(a), len(b))
    pairs = zip((1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b, strict=True)
    return tuple(m if n == 1 else n if m in (1, None) else m for n, m in pairs)


def _sizes(shape: Shape) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)
