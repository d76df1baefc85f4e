"""Gradient checkpointing: less memory for a second forward pass."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import keras

from tfaccel.compat import keras_graphs
from tfaccel.compat.patching import instance_attributes
from tfaccel.core.plan import Pass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.passes.recompute import _partition
from tfaccel.passes.recompute._partition import DOMINANT
from tfaccel.passes.recompute._sites import GraphRun, Recomputer, whole_call
from tfaccel.system import notices
from tfaccel.system.arguments import is_whole
from tfaccel.system.memory import is_out_of_memory


@dataclasses.dataclass(frozen=True)
class Recompute(Pass):
    """Keeps few activations for the backward pass and computes the others again.

    The model is cut into parts, and of each part only the input is kept. When the
    gradient gets there, the part is computed once more. A step takes about one forward
    pass more, and memory for about the square root of the number of layers. The pass
    serves batches and models that do not fit otherwise; it is tried only when it is
    asked for or when a trial runs out of memory.

    Functional and Sequential models are cut where few values pass from layer to
    layer; the last part, which the loss follows, is kept. In subclassed models, whole
    layers at the top level (those with layers inside, where there are any) are the
    parts. A layer that makes up more than a third of the model is looked into.

    The step stays the same: random numbers are drawn once, and moving statistics,
    metrics and losses that layers add are updated once. A part for which this can't be
    shown when it is traced runs as it is written: one with a stateful op, a sparse
    gradient (Embedding), or a value from outside.

    Args:
        segments: parts at most that a graph of layers is cut into; None for the
            number that is expected to need least memory.

    Raises:
            ValueError: `segments` is neither None nor a whole number above 1.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost,
    https://arxiv.org/abs/1604.06174
    """

    name: ClassVar[str] = "recompute"
    # Forward ops are traced once more, and again in the backward pass.
    compile_factor: ClassVar[float] = 1.5
    serves_validation: ClassVar[bool] = False
    tried_by_default: ClassVar[bool] = False
    saves_memory: ClassVar[bool] = True

    segments: int | None = None

    def __post_init__(self) -> None:
        if self.segments is not None and not (is_whole(self.segments) and self.segments > 1):
            raise ValueError(
                f"`segments` must be None or a whole number above 1. Received: {self.segments!r}"
            )

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if not workload.model.built:
            return Unsupported("the model is not built, so its layers are not known")
        if not any(True for _ in self._sites(workload, Recomputer())):
            return Refusal.NO_USE("the model has no part of several layers before its last")
        return None

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=False,
            gain=0.8,
            reason="a second forward pass costs time; what it saves is memory",
        )

    def fallback_reason(self, error: Exception) -> str:
        return "memory runs out, and recompute needs less" if is_out_of_memory(error) else ""

    @contextlib.contextmanager
    def applied(self, context: StepContext) -> Iterator[None]:
        recomputer = Recomputer()
        with instance_attributes(self._sites(context.workload, recomputer)):
            yield
        if recomputer.left and not recomputer.done:
            notices.warn(
                f"tfaccel recomputes nothing: {'; '.join(dict.fromkeys(recomputer.left))}",
                RuntimeWarning,
                stacklevel=4,
            )

    def _sites(self, workload: Workload, recomputer: Recomputer) -> Iterator["_Site"]:
        """The methods to replace, in the model and in the layers that are looked into."""
        seen: set[int] = set()
        todo: list[tuple[keras.layers.Layer, bool]] = [(workload.model, True)]
        while todo:
            layer, is_last = todo.pop(0)
            if id(layer) in seen:
                continue
            seen.add(id(layer))
            graph = keras_graphs.graph_of(layer)
            if graph is None:
                opened, whole = _children(layer)
                yield from ((i, "call", whole_call(i, recomputer)) for i in whole)
            else:
                pieces = _partition.pieces_of(graph, self.segments, is_last)
                opened = [p.nodes[0].operation for p in pieces if p.kind == "opened"]
                if any(piece.kind == "recomputed" for piece in pieces):
                    yield graph, "_run_through_graph", GraphRun(graph, pieces, recomputer)
            todo += [(item, False) for item in opened]


_Site = tuple[Any, str, Callable[..., Any]]


def _children(
    layer: keras.layers.Layer,
) -> tuple[list[keras.layers.Layer], list[keras.layers.Layer]]:
    """The layers inside a `call` of the user's: those to look into, and those to recompute."""
    inside = _partition.children(layer)
    sizes = [_partition.leaf_count(child) for child in inside]
    total = sum(sizes)
    opened, whole = [], []
    for child, size in zip(inside, sizes, strict=True):
        if size > DOMINANT * total and _partition.is_open(child):
            opened.append(child)
        elif size > 1 or max(sizes) == 1:
            whole.append(child)
    # The gradient needs the last of equal layers at once.
    return opened, whole[:-1] if max(sizes, default=0) == 1 else whole
