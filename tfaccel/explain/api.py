"""explain: layer by layer, what runs, what each pass would do, and why nothing faster runs."""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence

import keras
import rich.console
from rich.markup import escape

from tfaccel.autotune.eligibility import ineligibility
from tfaccel.core import layer_note
from tfaccel.core.plan import Pass, Plan, as_plan
from tfaccel.core.workload import Workload
from tfaccel.explain.rows import LayerRow, Look
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.system.device import Device, current_device

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What runs in a model's training step, layer by layer.

    Attributes:
        model: the model's name.
        device: the chip that it was explained for.
        plan: the plan that it was explained under; None when every pass was looked at.
        passes: whether each pass serves the step, or why not, by pass.
        rows: the model first, then layer by layer, then the optimizers.
        notes: facts on the whole step, such as a reason that excludes every pass.
    """

    model: str
    device: str
    plan: Plan | None
    passes: dict[str, str]
    rows: tuple[LayerRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def headings(self) -> tuple[str, ...]:
        """The table's columns; under a plan there is no need for what passes would do."""
        would = ("with passes",) if self.plan is None else ()
        return ("layer", "kind", "output shape", "runs as", *would, "why not something faster")

    def cells(self) -> list[tuple[str, ...]]:
        """The table's rows."""
        return [self._cells(row) for row in self.rows]

    def _cells(self, row: LayerRow) -> tuple[str, ...]:
        would = "; ".join(f"{name}: {said}" for name, said in row.would.items())
        return (
            *(row.layer, row.kind, row.output_shape, row.runs_as),
            *((would,) if self.plan is None else ()),
            "; ".join(row.why_not),
        )

    def to_json(self) -> str:
        """The explanation as JSON text."""
        plan = None if self.plan is None else json.loads(self.plan.to_json())
        data = {"schema": SCHEMA} | dataclasses.asdict(self) | {"plan": plan}
        return json.dumps(data, indent=2)

    def to_markdown(self) -> str:
        """The table and what the passes say, as Markdown."""
        table = markdown_table(self.headings, self.cells())
        return "\n".join([self._title(), "", table, "", *(f"- {s}" for s in self.sentences()), ""])

    def sentences(self) -> list[str]:
        """A line for each pass, and the notes."""
        told = (
            (name, " " if said.startswith("refuses") else ": ", said)
            for name, said in self.passes.items()
        )
        return [*map("".join, told), *self.notes]

    def _title(self) -> str:
        under = "" if self.plan is None else f", under {self.plan}"
        return f"{self.model} on {self.device}{under}"

    def __rich__(self) -> rich.console.Group:
        table = terminal_table(self.headings, self.cells())
        lines = (f"  {escape(text)}" for text in self.sentences())
        return rich.console.Group(escape(self._title()), table, *lines)


def explain(
    model: keras.Model,
    plan: Plan | Sequence[str | Pass] | str | os.PathLike[str] | None = None,
    *,
    device: Device | None = None,
) -> Explanation:
    """Says how each layer of a model runs, and why it does not run faster.

    Nothing is run, traced or changed: layers are read, and the passes are asked by
    the same methods that decide while a step is traced.

    Args:
        model: built, so that shapes are known; compiled, so that its optimizer is.
        plan: what to explain the model under: a `tfaccel.Plan`, a list of pass
            names, or the path of a saved plan. None looks at every built-in pass.
        device: that the model is to run on; None for this machine's.

    Returns:
        The explanation, with a row for each layer.

    Raises:
        TypeError, ValueError: `plan` is not a plan, or `model` is no model.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    >>> rows = explain(model).rows
    >>> [row.kind for row in rows]
    ['Sequential', 'BatchNormalization']
    >>> rows[1].would["fused_norm"]
    'loops by XLA'
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: {type(model).__name__}")
    workload = Workload(model, device=device or current_device())
    chosen = None if plan is None else as_plan(plan)
    look = Look(workload, chosen)
    return Explanation(
        model=model.name,
        device=workload.device.name,
        plan=chosen,
        passes=look.verdicts(),
        rows=tuple(look.rows()),
        notes=tuple(_notes(model, workload.device)),
    )


def _notes(model: keras.Model, device: Device) -> Iterator[str]:
    stopped = ineligibility(model)
    if stopped:
        yield stopped
    if device.kind == "CPU" and layer_note.onednn_is_on() is False:
        yield "TensorFlow leaves oneDNN's kernels off on this CPU; try TF_ENABLE_ONEDNN_OPTS=1."
