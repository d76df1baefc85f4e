"""The multiplications of one operation of a graph: a formula for each kind of product."""

import dataclasses
import math
from collections.abc import Callable

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Product:
    """A product that a graph's operation computes."""

    flops: int  # its floating-point operations; a multiply-add is two
    operands: tuple[int, int]  # which of the operation's inputs are multiplied with each other


class UnknownShapeError(ValueError):
    """A shape that a product's cost depends on is not known before the graph runs."""


Rule = Callable[[tf.Operation], Product | None]

# The code of these is not in the graph, so products in them can't be seen.
OPAQUE = frozenset(
    (
        *("EagerPyFunc", "PyFunc", "PyFuncStateless"),
        *("XlaCallModule", "XlaConv", "XlaConvV2", "XlaDot", "XlaDotV2"),
    )
)


def product(op: tf.Operation) -> Product | None:
    """The product that an operation computes; None for one that is no product.

    Products are those that MFU counts: matrix products, convolutions and recurrent
    cells. Elementwise maths, normalisation, reductions, look-ups and sparse products
    are none.

    Raises:
        UnknownShapeError: it is a product, of unknown size.
    """
    rule = _RULES.get(op.type)
    return None if rule is None else rule(op)


def einsum_flops(equation: str, left: tuple[int, ...], right: tuple[int, ...]) -> int | None:
    """The operations of an einsum of two tensors.

    Args:
        equation: with its output, such as `"bij,bjk->bik"`; `...` may stand for
            dimensions that broadcast.
        left: the first tensor's shape.
        right: the second's.

    Returns:
        Twice the multiplications; None where nothing is summed over both tensors, so
        that it is no matrix product.

    >>> einsum_flops("ij,jk->ik", (2, 3), (3, 5))
    60
    """
    terms, _, output = equation.replace(" ", "").partition("->")
    first, second = terms.split(",")
    sizes: dict[str, int] = {}
    labels: list[set[str]] = []
    for term, shape in ((first, left), (second, right)):
        labels.append(set(names := _labels(term, len(shape))))
        for label, size in zip(names, shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))  # 1 broadcasts
    common = labels[0] & labels[1]
    kept = {label for label in sizes if label in output or label.startswith("...")}
    if common <= kept:
        return None
    # A dimension of one tensor alone that is not in the output is summed beforehand.
    return 2 * math.prod(sizes[label] for label in common | kept)


def _labels(term: str, rank: int) -> list[str]:
    """A term's dimensions; those that `...` stands for are counted from the right."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after) if dots else 0
    return [*before, *(f"...{place}" for place in range(hidden, 0, -1)), *after]


def _shape(tensor: tf.Tensor) -> tuple[int, ...]:
    if not tensor.shape.is_fully_defined():
        raise UnknownShapeError(f"{tensor.name} has shape {tensor.shape}")
    return tuple(tensor.shape)


def _size(tensor: tf.Tensor) -> int:
    return math.prod(_shape(tensor))


def _matmul(op: tf.Operation) -> Product:
    transposed = "transpose_a" if op.type == "MatMul" else "adj_x"
    inner = _shape(op.inputs[0])[-2 if op.get_attr(transposed) else -1]
    return Product(2 * _size(op.outputs[0]) * inner, (0, 1))


def _einsum(op: tf.Operation) -> Product | None:
    if len(op.inputs) != 2:
        return None
    equation = op.get_attr("equation").decode()
    flops = einsum_flops(equation, _shape(op.inputs[0]), _shape(op.inputs[1]))
    return None if flops is None else Product(flops, (0, 1))


def _cells(filters: tf.Tensor, depthwise: bool) -> int:
    """Multiplications for one element of the output.

    A filter's shape is its window, input channels (of one group) and output channels,
    or (depthwise) the multiplier, so strides, dilation, groups and the data format need
    not be looked at.
    """
    shape = _shape(filters)
    return math.prod(shape[:-2] if depthwise else shape[:-1])


def _convolution(op: tf.Operation) -> Product:
    cells = _cells(op.inputs[1], op.type.startswith("Depthwise"))
    return Product(2 * _size(_undilated(op.outputs[0])) * cells, (0, 1))


def _undilated(output: tf.Tensor) -> tf.Tensor:
    """The convolution's output without the padding of a dilated one.

    TensorFlow computes dilated convolutions on the CPU between SpaceToBatchND and
    BatchToSpaceND, which pads and crops: https://www.tensorflow.org/api_docs/python/tf/nn/convolution
    """
    users = output.consumers()
    while len(users) == 1 and users[0].type == "Squeeze":  # a convolution in one dimension
        users = users[0].outputs[0].consumers()
    cropped = len(users) == 1 and users[0].type == "BatchToSpaceND"
    return users[0].outputs[0] if cropped else output


def _input_gradient(op: tf.Operation) -> Product:
    """Also what a transposed convolution is made of: each input meets the whole filter."""
    cells = _cells(op.inputs[1], op.type.startswith("Depthwise"))
    return Product(2 * _size(op.inputs[2]) * cells, (1, 2))


def _filter_gradient(op: tf.Operation) -> Product:
    cells = _cells(op.outputs[0], op.type.startswith("Depthwise"))
    return Product(2 * _size(op.inputs[2]) * cells, (0, 2))


# Gates, each with an input product and a recurrent one.
_GATES = {b"lstm": 4, b"gru": 3, b"rnn_relu": 1, b"rnn_tanh": 1}


def _cudnn_rnn(op: tf.Operation) -> Product:
    """All layers, directions and steps. Shapes: input (time, batch, features), state
    (layers * directions, batch, units), time and batch the other way round if the op
    says so."""
    *places, features = _shape(op.inputs[0])
    states, _, units = _shape(op.inputs[1])
    directions = 2 if op.get_attr("direction") == b"bidirectional" else 1
    gates = _GATES[op.get_attr("rnn_mode")]
    widths = [features] + [units * directions] * (states // directions - 1)
    cells = sum(directions * gates * units * (width + units) for width in widths)
    return Product(2 * math.prod(places) * cells, (0, 3))


_CONVOLUTIONS = ("Conv2D", "Conv3D", "DepthwiseConv2dNative")
_RULES: dict[str, Rule] = {
    **dict.fromkeys(("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3"), _matmul),
    "Einsum": _einsum,
    **dict.fromkeys(("Conv", *_CONVOLUTIONS), _convolution),
    **{f"{op}BackpropInput{v}": _input_gradient for op in _CONVOLUTIONS for v in ("", "V2")},
    **{f"{op}BackpropFilter{v}": _filter_gradient for op in _CONVOLUTIONS for v in ("", "V2")},
    **dict.fromkeys(("CudnnRNN", "CudnnRNNV2", "CudnnRNNV3"), _cudnn_rnn),
}
