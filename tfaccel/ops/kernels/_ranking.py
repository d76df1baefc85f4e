"""The kernels of one call, ranked by measuring."""

import dataclasses
from collections.abc import Collection
from typing import Any

import rich.console
from rich.markup import escape

from tfaccel.measure.outcome import Outcome
from tfaccel.measure.tables import markdown_table, terminal_table
from tfaccel.measure.timing import Speedup
from tfaccel.measure.units import milliseconds, ratio
from tfaccel.ops.kernels._kernel import Kernel
from tfaccel.ops.kernels._registry import REFERENCE, named, reference
from tfaccel.ops.kernels._spec import CallSpec
from tfaccel.system.json_files import typed

_HEADINGS = ("kernel", "time", "speedup", "drift", "verdict", "reason")
_NUMBERS = ("time", "drift")
# How much faster a kernel that XLA compiles must be than the best of the others.
_WORTH_COMPILING = 1.1


_ORDER = list(Outcome)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One kernel of a ranking.

    Attributes:
        kernel: its name.
        verdict: how its trial ended.
        seconds: the median of its times; None where it was not timed.
        speedup: against TensorFlow's op, timed in between; None where not timed.
        drift: the norm of its difference from TensorFlow's result, over that of the
            result; None where it was not compared.
        reason: why it was refused, failed, or is not used.
        reduces: whether it multiplies in fewer bits than the operands have.
        unlikely: whether it was left untried, as it is not expected to win.
    """

    kernel: str
    verdict: Outcome
    seconds: float | None = None
    speedup: Speedup | None = None
    drift: float | None = None
    reason: str = ""
    reduces: bool = False
    unlikely: bool = False

    def __str__(self) -> str:
        """Such as `im2col 1.82x` or `shifted refused: it has groups`."""
        if self.speedup is not None and self.verdict is not Outcome.BASELINE:
            return f"{self.kernel} {ratio(self.speedup.median)}"
        return f"{self.kernel} {self.verdict.value}" + (f": {self.reason}" if self.reason else "")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The kernels of one call, the best first.

    Attributes:
        spec: the call.
        candidates: every kernel of its op and direction.
        complete: whether none was left untried.
    """

    spec: CallSpec
    candidates: tuple[Candidate, ...]
    complete: bool = True

    def __post_init__(self) -> None:
        def place(candidate: Candidate) -> tuple[bool, int, float]:
            timed = candidate.speedup is not None
            rank = 0 if timed else 1 + _ORDER.index(candidate.verdict)
            return not timed, rank, -candidate.speedup.median if candidate.speedup else 0.0

        object.__setattr__(self, "candidates", tuple(sorted(self.candidates, key=place)))

    @property
    def is_settled(self) -> bool:
        """Whether all that are likely to win were tried."""
        undecided = (c for c in self.candidates if c.verdict is Outcome.UNDECIDED)
        return self.complete or all(c.unlikely for c in undecided)

    def lacks(self, names: Collection[str]) -> bool:
        """Whether one of these kernels was left untried."""
        untried = (c.kernel for c in self.candidates if c.verdict is Outcome.UNDECIDED)
        return any(name in names for name in untried)

    def best(
        self,
        reduced: bool = False,
        in_xla: bool = True,
        compiled: bool = True,
        families: Collection[str] | None = None,
    ) -> Candidate | None:
        """The fastest faithful kernel that beats TensorFlow's; None where none does.

        One that XLA compiles must be clearly ahead of those that it doesn't, as it is compiled
        anew for each batch size.

        Args:
            reduced: whether it may multiply in fewer bits than the operands have.
            in_xla: whether XLA may compile what it becomes part of.
            compiled: whether it may be one that XLA compiles for each size.
            families: the kernels that were asked for; None where the plan may be saved.
        """
        faster = [c for c in self.candidates if c.verdict is Outcome.FASTER]
        allowed = [c for c in faster if reduced or not c.reduces]
        winners = [
            c
            for c in allowed
            if (not in_xla or self._kernel(c).in_xla)
            and self._kernel(c).left_out(self.spec, families) is None
        ]
        plain = next((c for c in winners if not self._kernel(c).jit_compile), None)
        first = next(iter(winners), None) if compiled else plain
        if first is None or plain is None or first.speedup is None or plain.speedup is None:
            return first
        ahead = first.speedup.median > _WORTH_COMPILING * plain.speedup.median
        return first if ahead else plain

    def kernel(self, **allowed: Any) -> Kernel:
        """The kernel to use: that of `best`, or TensorFlow's where it gives none."""
        best = self.best(**allowed)
        return self._kernel(best) if best else reference(self.spec.op, self.spec.direction)

    def kernel_for(self, spec: CallSpec, **allowed: Any) -> Kernel:
        """The kernel for a call that fits; what won for known sizes may refuse others."""
        kernel = self.kernel(**allowed)
        return kernel if kernel.unsupported(spec) is None else reference(spec.op, spec.direction)

    def _kernel(self, candidate: Candidate) -> Kernel:
        """A candidate's kernel; TensorFlow's where it was unregistered since."""
        op, direction = self.spec.op, self.spec.direction
        return named(op, direction, candidate.kernel) or reference(op, direction)

    @property
    def reference_seconds(self) -> float:
        """Seconds that TensorFlow's op takes."""
        own = (c.seconds for c in self.candidates if c.kernel == REFERENCE)
        return next(own, None) or 0.0

    @property
    def speedups(self) -> dict[str, float]:
        """Of the kernels beside TensorFlow's that were timed, by name."""
        timed = ((c.kernel, c.speedup) for c in self.candidates if c.kernel != REFERENCE)
        return {name: speedup.median for name, speedup in timed if speedup is not None}

    def to_dict(self) -> dict[str, Any]:
        """The ranking as JSON values, for this machine."""
        call = {f.name: getattr(self.spec, f.name) for f in dataclasses.fields(self.spec)}
        del call["device"]
        return {
            "call": call,
            "complete": self.complete,
            "candidates": [
                dataclasses.asdict(c) | {"verdict": c.verdict.value} for c in self.candidates
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Ranking":
        """Reads what `to_dict` wrote here; KeyError, TypeError or ValueError if it is none."""
        call: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in data["call"].items()
        }
        candidates = tuple(
            Candidate(
                **item
                | {
                    "verdict": Outcome(item["verdict"]),
                    "speedup": item["speedup"] and typed(Speedup(**item["speedup"])),
                }
            )
            for item in data["candidates"]
        )
        for candidate in candidates:
            typed(candidate)
        return cls(typed(CallSpec(**call)), candidates, bool(data["complete"]))

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (
                c.kernel,
                "" if c.seconds is None else milliseconds(c.seconds),
                "" if c.speedup is None else str(c.speedup),
                "" if c.drift is None else f"{c.drift:.0e}",
                c.verdict.value,
                c.reason,
            )
            for c in self.candidates
        ]

    def to_markdown(self) -> str:
        """The table as Markdown, under the call."""
        table = markdown_table(_HEADINGS, self._cells(), numbers=_NUMBERS)
        return f"{self._title()}\n\n{table}\n"

    def _title(self) -> str:
        return f"{self.spec}: {self.spec.direction.replace('_', ' ')}"

    def __rich__(self) -> rich.console.Group:
        table = terminal_table(_HEADINGS, self._cells(), numbers=_NUMBERS, bold=(0,))
        return rich.console.Group(escape(self._title()), table)
