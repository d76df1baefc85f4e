"""What passes do to each layer of a model, asked by the methods that decide in a step."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import keras

from tfaccel.autotune import priors
from tfaccel.compat import keras_private
from tfaccel.core.layer_note import Runs
from tfaccel.core.plan import Pass, Plan, Unsupported
from tfaccel.core.step_context import StepContext
from tfaccel.core.workload import Workload
from tfaccel.explain import facts as layer_facts
from tfaccel.explain.facts import advice
from tfaccel.passes import PASSES, XLA, FusedNorm, FusedOptimizer

# Layers whose own cells are part of the same loop.
_ONE_LOOP = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
_NORMS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)


def walk(model: keras.Model) -> Iterator[tuple[str, keras.layers.Layer]]:
    """The model and the layers inside it, once each, in order, with their paths.

    Left out are inputs, which compute nothing, and the cells of recurrent layers.

    >>> inner = keras.Sequential([keras.layers.ReLU(name="relu")], name="inner")
    >>> [path for path, _ in walk(keras.Sequential([inner], name="outer"))]
    ['outer', 'inner', 'inner/relu']
    """
    seen: set[int] = set()

    def visit(layer: keras.layers.Layer, path: str) -> Iterator[tuple[str, keras.layers.Layer]]:
        if id(layer) in seen or isinstance(layer, keras.layers.InputLayer):
            return
        seen.add(id(layer))
        yield path or layer.name, layer
        for child in () if isinstance(layer, _ONE_LOOP) else _children(layer):
            yield from visit(child, f"{path}/{child.name}" if path else child.name)

    return visit(model, "")


def _children(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """The layers that are directly inside a layer."""
    inside = keras_private.flatten_layers(layer)[1:]
    deeper = {id(low) for child in inside for low in keras_private.flatten_layers(child)[1:]}
    return [child for child in inside if id(child) not in deeper]


def output_shape(layer: keras.layers.Layer) -> str:
    """The shape that a call returns, such as `"?x32x32x3"`; empty where Keras can't tell."""
    try:
        shapes = [tensor.shape for tensor in keras.tree.flatten(layer.output)]
    except (AttributeError, ValueError, RuntimeError):  # not called on symbols, or more than once
        shapes = _computed_shapes(layer)
    return ", ".join(map(_shown, shapes))


def _computed_shapes(layer: keras.layers.Layer) -> list[Sequence[int | None]]:
    """What the layer makes of the shape that it was built for."""
    built_for = (layer.get_build_config() or {}).get("input_shape") if layer.built else None
    if not built_for:
        return []
    try:
        found = layer.compute_output_shape(tuple(built_for))
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return []
    return [found] if all(size is None or isinstance(size, int) for size in found) else list(found)


def _shown(shape: Sequence[Any]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape) or "scalar"


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """One layer, or one optimizer.

    Attributes:
        layer: its name, behind the names of the layers around it.
        kind: its class.
        output_shape: of one call; empty where it is not known.
        now: how it runs when nothing is done about it.
        runs_as: how it runs under the plan; the same as `now` where there is none.
        would: what each pass that serves it makes of it, by the pass's name.
        why_not: what keeps it from running faster.
    """

    layer: str
    kind: str
    output_shape: str
    now: str
    runs_as: str
    would: dict[str, str] = dataclasses.field(default_factory=dict)
    why_not: tuple[str, ...] = ()


class Look:
    """A workload, and what passes say of its layers and optimizers.

    Args:
        workload: the model and the device; batches are not needed.
        plan: the plan to look at; None for each built-in pass by itself.
    """

    def __init__(self, workload: Workload, plan: Plan | None):
        self._workload = workload
        self._plan = plan
        names = [item.name for item in PASSES]
        every = [item for item, _ in priors.expected(workload, names)]
        self._items = every if plan is None else list(plan.passes)
        self._refusals = {item.name: item.unsupported(workload) for item in self._items}
        self._obstacles = dict(self._told())
        self._weights = workload.model.count_params() if workload.model.built else 0

    def _told(self) -> Iterator[tuple[tuple[str, int], Unsupported | None]]:
        """By pass and layer (or optimizer): what keeps the pass off it, or None."""
        for item in self._items:
            # A refusal of another precision is about the chip or the whole model.
            if self._is_precision(item) and self._refusals[item.name]:
                continue
            with self._beside_xla(item):
                told = (
                    item.optimizers(self._workload)
                    if isinstance(item, FusedOptimizer)
                    else item.layers(self._workload)
                )
                for target, obstacle in told:
                    yield (item.name, id(target)), obstacle

    def _is_precision(self, item: Pass) -> bool:
        """Whether the pass decides what layers compute in."""
        return item.compute_dtype(self._workload) is not None

    def _beside_xla(self, item: Pass) -> contextlib.AbstractContextManager[None]:
        """In a plan with XLA some optimizers can't be fused."""
        xla = self._serving(XLA)
        alone = self._plan is None or not isinstance(item, FusedOptimizer)
        if alone or xla is None:
            return contextlib.nullcontext()
        return xla.applied(StepContext(self._workload))

    def _serving(self, kind: type[Pass]) -> Pass | None:
        """The pass of this kind that is looked at, unless it refuses."""
        found = (item for item in self._items if isinstance(item, kind))
        return next((item for item in found if self._refusals[item.name] is None), None)

    def verdicts(self) -> dict[str, str]:
        """What each pass says of the whole step."""
        usable = "can be tried" if self._plan is None else "in the plan"
        return {
            str(item): f"refuses: {unsupported}" if unsupported else usable
            for item, unsupported in zip(self._items, self._refusals.values(), strict=True)
        }

    def rows(self) -> Iterator[LayerRow]:
        """The model, every layer inside it, then its optimizers."""
        for path, layer in walk(self._workload.model):
            is_model = isinstance(layer, keras.Model)
            yield self._model_row(path, layer) if is_model else self._layer_row(path, layer)
        for optimizer, _ in FusedOptimizer().optimizers(self._workload):
            yield self._optimizer_row(optimizer)

    def _layer_row(self, path: str, layer: keras.layers.Layer) -> LayerRow:
        device = self._workload.device
        now = under = layer_facts.runs(layer, device)
        would: dict[str, str] = {}
        why_not: list[str] = []
        # What a layer computes in decides how others serve it.
        for item in sorted(self._items, key=lambda item: not self._is_precision(item)):
            obstacle = self._obstacles.get((item.name, id(layer)))
            if obstacle is not None:
                why_not.append(f"{item.name}: {_about(layer, obstacle)}")
            elif self._serves(item, layer):
                before = now if self._plan is None else under
                note = item.describe(layer, before, self._workload)
                new, under = _new(before, note.runs), note.runs
                would |= {item.name: new} if new else {}
                why_not += [f"{item.name}: {text}" for text in note.why_not]
        why_not += self._advice(layer)
        now, under = (
            layer_facts.by_xla(runs, device) if jit_compile else runs
            for runs, jit_compile in zip((now, under), self._jit_compile(), strict=True)
        )
        return self._row(path, layer, str(now), str(under), would, why_not)

    def _serves(self, item: Pass, layer: keras.layers.Layer) -> bool:
        told = (item.name, id(layer)) in self._obstacles
        kept = self._obstacles.get((item.name, id(layer)))
        return told and kept is None and not self._refusals[item.name]

    def _advice(self, layer: keras.layers.Layer) -> list[str]:
        served = {item.name for item in self._items if self._serves(item, layer)}
        said = advice(layer, self._workload.device, self._weights, served)
        if isinstance(layer, _NORMS) and FusedNorm.name not in self._refusals:
            said.append(_not_in_plan(FusedNorm))
        return said

    def _row(
        self,
        path: str,
        layer: keras.layers.Layer,
        now: str,
        under: str,
        would: dict[str, str],
        why_not: list[str],
    ) -> LayerRow:
        runs_as = now if self._plan is None else under
        kind, shape = type(layer).__name__, output_shape(layer)
        return LayerRow(path, kind, shape, now, runs_as, would, tuple(why_not))

    def _model_row(self, path: str, model: keras.Model) -> LayerRow:
        if model is not self._workload.model:
            inside = sum(not isinstance(layer, keras.Model) for _, layer in walk(model))
            return self._row(path, model, f"{inside} layers", f"{inside} layers", {}, [])
        now, under = map(_step, self._jit_compile())
        would = {} if now == under else {XLA.name: under}
        return self._row(path, model, now, under, would, [])

    def _jit_compile(self) -> tuple[bool, bool]:
        """Whether XLA compiles the step: as it is, and under the XLA pass if that serves."""
        now, xla = bool(self._workload.model.jit_compile), self._serving(XLA)
        return now, xla.jit_compile if isinstance(xla, XLA) else now

    def _optimizer_row(self, optimizer: keras.optimizers.Optimizer) -> LayerRow:
        count = len(self._workload.model.trainable_variables)
        now, fused = (f"{ops} for each of {count} variables" for ops in ("several ops", "one op"))
        kind, name = type(optimizer).__name__, FusedOptimizer.name
        row = LayerRow(f"optimizer {optimizer.name}", kind, "", now, now)
        if name not in self._refusals:
            return dataclasses.replace(row, why_not=(_not_in_plan(FusedOptimizer),))
        unsupported = self._obstacles.get((name, id(optimizer))) or self._refusals[name]
        if unsupported is not None:
            return dataclasses.replace(row, why_not=(f"{name}: {unsupported}",))
        runs_as = now if self._plan is None else fused
        return dataclasses.replace(
            row, runs_as=runs_as, would={name: fused}, why_not=self._sparse()
        )

    def _sparse(self) -> tuple[str, ...]:
        """The fused ops leave the sparse gradients of embeddings to Keras."""
        kinds = keras.layers.Embedding
        layers = [i for i in self._workload.layers if isinstance(i, kinds) and i.trainable]
        names = ", ".join(layer.name for layer in layers)
        return (f"sparse gradients keep Keras's update: {names}",) if names else ()


def _step(jit_compile: bool) -> str:
    return "compiled by XLA" if jit_compile else "a graph of TensorFlow ops"


def _not_in_plan(kind: type[Pass]) -> str:
    return f"{kind.name} is not in the plan"


def _new(now: Runs, under: Runs) -> str:
    """What is other in how a layer runs, in words."""
    pairs = zip(dataclasses.astuple(now), dataclasses.astuple(under), strict=True)
    op, _, dtype, layout = (new if new != old else "" for old, new in pairs)
    return ", ".join(text for text in (op.removeprefix(f"{now.op}, "), dtype, layout) if text)


def _about(layer: keras.layers.Layer, obstacle: Unsupported) -> str:
    """The obstacle, less the name of the layer in whose row it stands."""
    name = f"layer {layer.name!r} "
    text = str(obstacle).removeprefix(f"{name}({type(layer).__name__}) ")
    return text.removeprefix(name)
