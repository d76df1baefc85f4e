"""What passes do to each layer of a model, asked by the methods that decide in a step."""

import contextlib
import dataclasses
from collections.abc import Iterator

import keras

from tfaccel.autotune import priors
from tfaccel.core.plan import Pass, Plan, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.explain import facts as layer_facts
from tfaccel.explain.advice import advice
from tfaccel.explain.facts import Runs
from tfaccel.explain.tree import output_shape, walk
from tfaccel.passes import (
    PASSES,
    XLA,
    FullPrecision,
    FusedActivation,
    FusedAttention,
    FusedNorm,
    FusedOptimizer,
    FusedRNN,
    Kernels,
    MixedPrecision,
)

# The name of the pass that transposes channels_first layers.
_LAYOUT = "layout"
# They decide what layers compute in.
_PRECISIONS = (FullPrecision, MixedPrecision)
_NORMS = (keras.layers.BatchNormalization, keras.layers.LayerNormalization)


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
            tell = getattr(item, "obstacles", None)
            # A refusal of another precision is about the chip or the whole model.
            too_wide = isinstance(item, _PRECISIONS) and self._refusals[item.name]
            if tell is None or too_wide:
                continue
            with self._beside_xla(item):
                for target, obstacle in tell(self._workload):
                    yield (item.name, id(target)), obstacle

    def _beside_xla(self, item: Pass) -> contextlib.AbstractContextManager[None]:
        """In a plan with XLA some optimizers can't be fused."""
        xla = self._serving(XLA)
        alone = self._plan is None or not isinstance(item, FusedOptimizer)
        return contextlib.nullcontext() if alone or not xla else xla.applied(self._workload)

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
        for optimizer, _ in FusedOptimizer().obstacles(self._workload):
            yield self._optimizer_row(optimizer)

    def _layer_row(self, path: str, layer: keras.layers.Layer) -> LayerRow:
        device = self._workload.device
        now = under = layer_facts.runs(layer, device)
        would: dict[str, str] = {}
        why_not: list[str] = []
        # What a layer computes in decides how others serve it.
        for item in sorted(self._items, key=lambda item: not isinstance(item, _PRECISIONS)):
            obstacle = self._obstacles.get((item.name, id(layer)))
            if obstacle is not None:
                why_not.append(f"{item.name}: {_about(layer, obstacle)}")
            elif self._serves(item, layer):
                under = _under(item, under, self._workload)
                would |= _would(item, now, self._workload)
                if isinstance(item, Kernels):
                    dtype = now.dtype if self._plan is None else under.dtype
                    used, others = item.choices(self._workload, layer, dtype)
                    would |= {item.name: used} if used else {}
                    under = dataclasses.replace(under, op=f"{under.op}, {used}") if used else under
                    why_not += [f"{item.name}: {text}" for text in others]
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


def _under(item: Pass, runs: Runs, workload: Workload) -> Runs:
    """How a layer that runs so runs under a pass that serves it."""
    if isinstance(item, FusedNorm):
        return layer_facts.fused(runs, workload.device, item.compiles(workload))
    if isinstance(item, FusedActivation):
        return dataclasses.replace(runs, op=f"{runs.op}, its activation one loop")
    if isinstance(item, FusedAttention):
        return dataclasses.replace(runs, op=f"{runs.op}, a shorter gradient")
    if isinstance(item, _PRECISIONS):
        return dataclasses.replace(runs, dtype=item.compute_dtype(workload))
    if isinstance(item, FusedRNN):
        return layer_facts.compiled_loop(runs)
    if item.name == _LAYOUT and runs.layout:
        return dataclasses.replace(runs, layout="channels_last")
    return runs


def _would(item: Pass, now: Runs, workload: Workload) -> dict[str, str]:
    """What is new to a layer under a pass that serves it, in words."""
    under = _under(item, now, workload)
    pairs = zip(dataclasses.astuple(now), dataclasses.astuple(under), strict=True)
    op, _, dtype, layout = (new if new != old else "" for old, new in pairs)
    new = [text for text in (op.removeprefix(f"{now.op}, "), dtype, layout) if text]
    return {item.name: ", ".join(new)} if new else {}


def _about(layer: keras.layers.Layer, obstacle: Unsupported) -> str:
    """The obstacle, less the name of the layer in whose row it stands."""
    name = f"layer {layer.name!r} "
    text = str(obstacle).removeprefix(f"{name}({type(layer).__name__}) ")
    return text.removeprefix(name)
