"""Which parts of a model to recompute: where a graph of layers is best cut."""

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import keras

from tfaccel.compat import keras_graphs, keras_private

# A part with more than this share of its model's values is looked into.
DOMINANT = 1 / 3


def leaf_count(operation: Any) -> int:
    """How many layers compute something inside a layer (itself, where it has none inside)."""
    if not isinstance(operation, keras.layers.Layer):
        return 1
    inside = keras_private.flatten_layers(operation)
    return max(1, sum(len(keras_private.flatten_layers(layer)) == 1 for layer in inside))


def children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that are directly inside a layer, in order."""
    inside = keras_private.flatten_layers(layer)[1:]
    deeper = {id(low) for child in inside for low in keras_private.flatten_layers(child)[1:]}
    return [child for child in inside if id(child) not in deeper]


def is_open(operation: Any) -> bool:
    """Whether a user's code calls the layers inside a layer."""
    if not isinstance(operation, keras.layers.Layer):
        return False
    keras_made = type(operation).__module__.startswith("keras.")
    composite = len(keras_private.flatten_layers(operation)) > 1
    return keras_graphs.graph_of(operation) is not None or (composite and not keras_made)


def _size(tensors: Sequence[Any]) -> int:
    """Values in tensors for each sample: dimensions that are not known count as one."""
    return sum(math.prod(size or 1 for size in tensor.shape) for tensor in tensors)


def node_cost(node: Any) -> int:
    """About how many values a call keeps for its gradient, for each sample.

    One tensor for each layer inside, as large as what goes in or comes out.
    """
    graph = (
        keras_graphs.graph_of(node.operation)
        if isinstance(node.operation, keras.layers.Layer)
        else None
    )
    if graph is not None:
        return sum(map(node_cost, keras_graphs.graph_nodes(graph)))
    size = max(_size(node.input_tensors), _size(node.outputs))
    return size * leaf_count(node.operation)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Calls that stand next to each other in a graph, in order.

    The kind is `"recomputed"`; `"kept"`, which is run as it is; or `"opened"`, one layer that has
    parts of its own.
    """

    nodes: tuple[Any, ...]
    kind: str


def pieces_of(graph: Any, most: int | None, is_last: bool) -> list[Piece]:
    """Cuts a Functional model into at most `most` parts; None for as many as keep least.

    Where the loss follows the model (`is_last`), the gradient needs the last part at once, so it
    is kept.
    """
    nodes = keras_graphs.graph_nodes(graph)
    costs = [node_cost(node) for node in nodes]
    total = sum(costs)
    pieces: list[Piece] = []
    opened = [
        is_open(n.operation) and c > DOMINANT * total for n, c in zip(nodes, costs, strict=True)
    ]
    for is_opened, group in itertools.groupby(range(len(nodes)), key=opened.__getitem__):
        indices = list(group)
        if is_opened:
            pieces += [Piece((nodes[i],), "opened") for i in indices]
            continue
        live = _live(nodes, indices)
        for first, end in cuts([costs[i] for i in indices], live, most):
            pieces.append(_piece([nodes[i] for i in indices[first:end]]))
    if is_last and pieces and pieces[-1].kind == "recomputed":
        pieces[-1] = Piece(pieces[-1].nodes, "kept")
    return pieces


def _piece(nodes: Sequence[Any]) -> Piece:
    """Calls as a piece. A single small layer is kept: it holds little more than its input."""
    worth = len(nodes) > 1 or leaf_count(nodes[0].operation) > 1
    return Piece(tuple(nodes), "recomputed" if worth else "kept")


def _live(nodes: Sequence[Any], indices: Sequence[int]) -> list[int]:
    """For each of the calls: the values for each sample that calls after it read."""
    last_use: dict[int, int] = {}
    for index, node in enumerate(nodes):
        last_use.update((id(tensor), index) for tensor in node.input_tensors)
    change = [0] * (len(nodes) + 1)
    for index, node in enumerate(nodes):
        for tensor in node.outputs:
            change[index] += _size([tensor])
            change[max(index, last_use.get(id(tensor), index))] -= _size([tensor])
    running = list(itertools.accumulate(change))
    return [running[i] for i in indices]


def cuts(costs: Sequence[int], live: Sequence[int], most: int | None) -> list[tuple[int, int]]:
    """Where to cut a row of calls into at most `most` parts, so that least is kept at once.

    Kept are the tensors at all cuts (`live`, after each call), and for one part at a time what is
    inside (`costs`, of each call). The parts are given as the index of their first call and that
    after their last.

    >>> cuts([1] * 9, [1] * 9, None)
    [(0, 3), (3, 6), (6, 9)]
    >>> cuts([4, 4, 4, 4], [4, 1, 4, 4], 2)
    [(0, 2), (2, 4)]
    """
    bound = most or 2 * math.isqrt(len(costs)) + 2
    limits = {math.ceil(2 * sum(costs) / halves) for halves in range(3, 2 * bound + 1)}
    found = [_cut_below(costs, live, limit) for limit in sorted(limits)]
    allowed = [ends for ends in found if 1 < len(ends) <= bound] or [[len(costs)]]

    def kept(ends: Sequence[int]) -> int:
        return sum(live[end - 1] for end in ends[:-1]) + max(
            sum(costs[first:end]) for first, end in itertools.pairwise([0, *ends])
        )

    return list(itertools.pairwise([0, *min(allowed, key=kept)]))


def _cut_below(costs: Sequence[int], live: Sequence[int], limit: int) -> list[int]:
    """The ends of parts of at most `limit` each, with least at the cuts.

    A call that is larger by itself has a part of its own. The best way to reach each
    cut is found from the best ways to those before it; a queue holds those that can
    still be of use, the best first.
    """
    count = len(costs)
    before = [0, *itertools.accumulate(costs)]
    best, came_from = [0] * (count + 1), [0] * (count + 1)
    queue: collections.deque[int] = collections.deque()
    for end in range(1, count + 1):
        while queue and best[queue[-1]] >= best[end - 1]:
            queue.pop()
        queue.append(end - 1)
        while len(queue) > 1 and before[end] - before[queue[0]] > limit:
            queue.popleft()
        came_from[end] = queue[0]
        best[end] = best[queue[0]] + (live[end - 1] if end < count else 0)
    ends = [count]
    while came_from[ends[-1]]:
        ends.append(came_from[ends[-1]])
    return ends[::-1]
