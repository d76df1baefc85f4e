"""Passes, which change a training step, and plans made of passes."""

import abc
import contextlib
import dataclasses
import math
import os
import pathlib
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from tfaccel.compat.no_data import mended
from tfaccel.core import known_passes
from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Unsupported
from tfaccel.core.workload import Workload
from tfaccel.measure.numerics import SIXTEEN_BITS
from tfaccel.measure.timing import Clock
from tfaccel.system.json_files import parsed, read_text, replace_text, to_text, typed

SCHEMA = 1


@dataclasses.dataclass(frozen=True)
class Pass(abc.ABC):
    """One acceleration of a compiled step. Its fields are its configuration.

    Laws, which a test checks for every pass:

    1. `applied` leaves the model, its layers and its optimizer exactly as it
       found them, also when the block inside it raises.
    2. `unsupported` changes nothing.
    3. The fields survive JSON.

    A subclass is a frozen dataclass with a `name`; defining it makes the name
    known to `Plan.from_json` and to `AccelCallback(plan=[...])`. A class that others derive
    from is given `is_base=True`, and no name.
    """

    name: ClassVar[str]
    # By what factor the first step under this pass takes longer than the baseline's: an
    # estimate, used only to see what a budget can pay for.
    compile_factor: ClassVar[float] = 1.0
    # Whether the pass changes the forward computation, which validation shares.
    serves_validation: ClassVar[bool] = True
    # Whether the pass changes what a step computes, and not only how steps are called.
    changes_step: ClassVar[bool] = True
    # Whether tuning tries the pass when the user names none in `includes`.
    tried_by_default: ClassVar[bool] = True
    # Whether the pass helps a plan that runs out of memory.
    saves_memory: ClassVar[bool] = False
    # Whether `prepare` needs a batch of the user's.
    needs_batch: ClassVar[bool] = False

    def __init_subclass__(cls, *, is_base: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if is_base:
            return
        name = getattr(cls, "name", None)
        if not isinstance(name, str) or not name.isidentifier():
            raise TypeError(
                f"A Pass needs a class attribute `name` that is an identifier. Received: {name!r}"
            )
        known_passes.add(name, cls)

    @abc.abstractmethod
    def unsupported(self, workload: Workload) -> Unsupported | None:
        """Why this pass cannot serve the workload; None when it can."""

    @abc.abstractmethod
    def applied(self, context: StepContext) -> contextlib.AbstractContextManager[None]:
        """A context manager inside which a step that is built and traced is accelerated.

        Args:
            context: the step's; `context.workload` has the facts.
        """

    def prepare(  # noqa: B027 (most passes have nothing to find out)
        self, context: StepContext, plan: "Plan", clock: Clock, deadline: float
    ) -> None:
        """Finds out what the pass must know before a step is traced; by default nothing.

        Args:
            context: `context.workload` has batches; `context.prepared` keeps what is found.
            plan: all that the step will be traced under, this pass included.
            clock: seconds.
            deadline: the clock's value at which this should have ended.
        """

    @classmethod
    def suited(cls, workload: Workload) -> "Pass":
        """The pass as tuning tries it; a subclass may configure it for the workload."""
        return cls.from_config({})

    def prior(self, workload: Workload) -> Prior:
        """Whether the pass is expected to pay, before anything is measured; by default it is."""
        return Prior()

    def cache_key(self, workload: Workload) -> Any:
        """Facts that decide whether the pass serves or wins, beyond those in every plan's key.

        Returns:
            A JSON value; None where there are none.
        """
        return None

    def layers(self, workload: Workload) -> Iterable[tuple[Any, Unsupported | None]]:
        """Each layer that the pass looks at, with what keeps the pass off it, or None."""
        return ()

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        """How a layer that the pass serves runs under it; for `explain`.

        Args:
            layer: one of `layers`.
            runs: how it runs without the pass.
            workload: the model and the device; nothing is run.
        """
        return LayerNote(runs)

    def findings(self, context: StepContext) -> tuple[str, ...]:
        """What `prepare` found, a line for each layer."""
        return ()

    @property
    def steps_per_call(self) -> int:
        """How many steps the pass would run in one call of the train function."""
        return 1

    def compiles_sizes(self, workload: Workload) -> bool:
        """Whether XLA would compile some of a step anew for each size of a batch."""
        return False

    def compute_dtype(self, workload: Workload) -> str | None:
        """The dtype that the pass computes in; None when it keeps the model's."""
        return None

    def sparing(self, layer: str) -> "Pass | None":
        """This pass with one layer left as it is; None for a pass that can't leave one out.

        Args:
            layer: the layer's name.
        """
        return None

    def fallback_reason(self, error: Exception) -> str:
        """Why a step fails as it is written, where it would not under this pass.

        Args:
            error: what the user's own step raised.

        Returns:
            One clause; empty where the pass would not help.
        """
        return ""

    def to_config(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Pass":
        """The pass with these fields; lists become tuples, as fields are frozen."""
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in config.items()})

    def __str__(self) -> str:
        changed = [
            f"{field.name}={getattr(self, field.name)}"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != field.default
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


@dataclasses.dataclass(frozen=True)
class Plan:
    """Passes to apply together, in order. `Plan()` is the baseline.

    Args:
        passes: the passes; the first is the outermost while a step is traced.

    Raises:
        TypeError: an element is not a `Pass`.
        ValueError: a pass occurs twice.

    Example:

    >>> plan = tfaccel.Plan((tfaccel.passes.FusedNorm(), tfaccel.passes.FusedOptimizer()))
    >>> tfaccel.Plan.from_json(plan.to_json()) == plan
    True
    """

    passes: tuple[Pass, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", tuple(self.passes))
        for item in self.passes:
            if not isinstance(item, Pass):
                call = f"; write {item.__name__}()" if isinstance(item, type) else ""
                raise TypeError(
                    f"`passes` must hold tfaccel.Pass objects. Received: {item!r}{call}"
                )
        names = self.names
        if len(set(names)) != len(names):
            raise ValueError(f"`passes` must not hold a pass twice. Received: {list(names)}")

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the passes, in order."""
        return tuple(item.name for item in self.passes)

    @property
    def is_baseline(self) -> bool:
        """Whether the plan leaves the step as the user wrote it."""
        return not self.passes

    @property
    def changes_step(self) -> bool:
        """Whether a step under the plan computes in another way than the user's own."""
        return any(item.changes_step for item in self.passes)

    @property
    def steps_per_call(self) -> int:
        """How many steps may run in one call, where the logs of each are handed out later."""
        return max((item.steps_per_call for item in self.passes), default=1)

    def without(self, name: str) -> "Plan":
        """This plan less the pass called `name`."""
        return Plan(tuple(item for item in self.passes if item.name != name))

    def without_16_bits(self, workload: Workload) -> "Plan":
        """This plan less the passes that compute in a 16-bit dtype."""
        exact = [p for p in self.passes if p.compute_dtype(workload) not in SIXTEEN_BITS]
        return Plan(tuple(exact))

    @property
    def needs_batch(self) -> bool:
        """Whether a pass must see a batch before the step is traced."""
        return any(item.needs_batch for item in self.passes)

    def compiles_sizes(self, workload: Workload) -> bool:
        """Whether XLA would compile some of a step anew for each size of a batch."""
        return any(item.compiles_sizes(workload) for item in self.passes)

    def prepare(self, context: StepContext, clock: Clock, deadline: float = math.inf) -> None:
        """Runs each pass's `prepare`, before a step is traced under the plan.

        Args:
            context: `context.workload` has batches; `context.prepared` keeps what is found.
            clock: seconds.
            deadline: the clock's value at which this should have ended.
        """
        for item in self.passes:
            item.prepare(context, self, clock, deadline)

    @contextlib.contextmanager
    def applied(self, context: StepContext) -> Iterator[None]:
        """All passes' contexts, entered in order; layers give empty batches the right shape."""
        with contextlib.ExitStack() as stack:
            on_cpu = context.workload.device.kind == "CPU"
            if context.may_be_empty and self.changes_step and on_cpu:
                stack.enter_context(mended(on_cpu))
            for item in self.passes:
                stack.enter_context(item.applied(context))
            yield

    def to_json(self) -> str:
        """The plan as JSON text, readable by `from_json` on any machine."""
        passes = [{"name": item.name, "config": item.to_config()} for item in self.passes]
        return to_text(SCHEMA, {"passes": passes})

    @classmethod
    def from_json(cls, text: str) -> "Plan":
        """Reads `to_json`'s text.

        Raises:
            ValueError: the text is no plan, of another schema, or names an
                unknown pass or field.
        """
        with parsed(text, SCHEMA, "a tfaccel plan") as data:
            return cls(tuple(make_pass(p["name"], p.get("config", {})) for p in data["passes"]))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the plan to a JSON file, for `AccelCallback(plan="plan.json")`."""
        replace_text(pathlib.Path(path), self.to_json() + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """Reads a plan from a file that `save` wrote.

        Raises:
            OSError: the file can't be read.
            ValueError: it holds no plan, as `from_json` says.
        """
        try:
            return cls.from_json(read_text(path))
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} is no plan: {error}") from error

    def __str__(self) -> str:
        return " + ".join(map(str, self.passes)) or "baseline"


def suited_pass(name: str, workload: Workload) -> Pass:
    """The pass called `name` as tuning tries it on a workload; ValueError where there is none."""
    return known_passes.needed(name).suited(workload)


def make_pass(name: str, config: dict[str, Any] | None = None) -> Pass:
    """The pass called `name` with the fields in `config`.

    Raises:
        ValueError: no pass has this name, or it has no such field.
    """
    try:
        return typed(known_passes.needed(name).from_config(config or {}))
    except (TypeError, AttributeError) as error:
        raise ValueError(f"The pass {name!r} does not take {config}: {error}") from error


def as_plan(plan: "Plan | Sequence[str | Pass] | str | os.PathLike[str]") -> Plan:
    """The plan that a user's `plan` argument stands for (`"auto"` aside).

    Args:
        plan: a `Plan`; `"baseline"`; a list of pass names or passes; or the path
            of a saved plan.
    """
    if isinstance(plan, Plan):
        return plan
    if isinstance(plan, str) and plan == "baseline":
        return Plan()
    if isinstance(plan, str) and known_passes.found(plan):
        raise ValueError(f"`plan` takes a list of pass names. Received: {plan!r}; write [{plan!r}]")
    kinds = '"auto", "baseline", a Plan, a list of pass names, or the path of a saved plan'
    if isinstance(plan, str | os.PathLike):
        if not pathlib.Path(plan).is_file():
            raise ValueError(
                f"`plan` must be {kinds}. Received: {str(plan)!r}, and "
                + ("that is a folder." if pathlib.Path(plan).is_dir() else "there is no such file.")
            )
        return Plan.load(plan)
    if isinstance(plan, Sequence):
        return Plan(tuple(make_pass(p) if isinstance(p, str) else p for p in plan))
    raise TypeError(
        f"`plan` must be {kinds}. Received: {reprlib.repr(plan)} (of type {type(plan).__name__})"
    )
