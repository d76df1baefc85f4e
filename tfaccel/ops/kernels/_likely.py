"""Which kernels are likely to win a call, by what was measured on calls like it.

Calls of one op, direction and dtype are the more alike, the closer their sizes are on a
logarithmic scale, and the more alike the machines are that they were measured on. A kernel's
speedup on a call is expected to be the weighted mean of its speedups on the nearest ones. What is
likely is measured before it is used, so a wrong guess costs time and nothing else.

Source: nearest neighbours by inverse weights, as in Cover and Hart, Nearest Neighbor Pattern
Classification, IEEE Transactions on Information Theory 13 (1967).
"""

import dataclasses
import functools
import importlib.resources
import json
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from tfaccel.core.machine_class import MachineClass
from tfaccel.ops.kernels._registry import KERNELS, kernels
from tfaccel.ops.kernels._spec import CallSpec

_SHIPPED = "measured.json"
# How many calls a guess is made from, how much less one counts at twice the size, and how
# alike the nearest one must be.
_NEAREST, _HALF, _LEAST_ALIKE = 5, 0.5, 0.02
# How far apart, in doublings, two calls are of which only one has strides (or a window, ...).
_OTHER_KIND = 4.0
# The most kernels that are tried, the least speedup expected of each, and the speedup that is
# hoped for where none is expected to win, as guesses can be that far off.
_MOST, _LEAST_SPEEDUP, _HOPED_SPEEDUP = 2, 0.8, 1.05
# The pace of a small machine, for calls of which nothing is known.
_FLOPS_PER_SECOND, _BYTES_PER_SECOND = 1e11, 1e10


@dataclasses.dataclass(frozen=True)
class Measured:
    """One call that was measured.

    Attributes:
        machine: that measured it.
        spec: the call; its device has no meaning.
        seconds: of TensorFlow's kernel.
        speedups: of the other kernels over it, by name.
    """

    machine: MachineClass
    spec: CallSpec
    seconds: float
    speedups: Mapping[str, float]

    def to_list(self) -> list[Any]:
        """The measurement as JSON values, without its machine."""
        call = [getattr(self.spec, name) for name in _FIELDS]
        return [call, self.seconds, dict(self.speedups)]

    @classmethod
    def from_list(cls, machine: MachineClass, values: Sequence[Any]) -> "Measured":
        """Reads `to_list`'s values."""
        call, seconds, speedups = values
        plain: list[Any] = [tuple(value) if isinstance(value, list) else value for value in call]
        facts: dict[str, Any] = dict(zip(_FIELDS, plain, strict=True))
        return cls(machine, CallSpec(**facts), seconds, speedups)


_FIELDS = tuple(field.name for field in dataclasses.fields(CallSpec) if field.name != "device")


@dataclasses.dataclass(frozen=True)
class Guess:
    """What is expected of a call.

    Attributes:
        kernels: those worth trying, the best first; None for all of them, where nothing like the
            call was measured.
        speedup: of the best of them; 1.0 where none is worth trying.
        seconds: of TensorFlow's kernel.
        expected: the speedups of those of which something is known, by name.
    """

    kernels: tuple[str, ...] | None
    speedup: float
    seconds: float
    expected: Mapping[str, float] = dataclasses.field(default_factory=dict)

    @property
    def saved_seconds(self) -> float:
        """What the best kernel is expected to save."""
        return self.seconds * (1.0 - 1.0 / self.speedup)


def guess(
    spec: CallSpec,
    machine: MachineClass,
    known: Iterable[Measured],
    reduced: bool = False,
    families: Collection[str] | None = (),
) -> Guess:
    """What is expected of a call on a machine.

    Args:
        spec: the call, its sizes known.
        machine: where it runs.
        known: what was measured before.
        reduced: whether kernels may multiply in fewer bits than the operands have.
        families: kernels to try whatever is known; None where what uses them may be saved.
    """
    alike = [(_alikeness(one, spec, machine), one) for one in known if _same_kind(one.spec, spec)]
    nearest = sorted(alike, key=lambda pair: -pair[0])[:_NEAREST]
    if not nearest or nearest[0][0] < _LEAST_ALIKE:
        # All are measured: the largest calls first.
        return Guess(None, 2.0, typical_seconds(spec))
    serving = _serving(spec, reduced, families)
    speedups = {
        name: math.exp(_mean((weight, math.log(one.speedups[name])) for weight, one in having))
        for name in serving
        if (having := [(w, one) for w, one in nearest if name in one.speedups])
    }
    worth = [name for name in speedups if speedups[name] >= _LEAST_SPEEDUP]
    chosen = sorted(worth, key=lambda name: -speedups[name])[:_MOST]
    rate = _mean((w, math.log(one.seconds / typical_seconds(one.spec))) for w, one in nearest)
    best = max(_HOPED_SPEEDUP, speedups[chosen[0]]) if chosen else 1.0
    seconds = typical_seconds(spec) * math.exp(rate)
    # Nothing is known of kernels that a user registered, nor of a device that was never tried.
    known_names = {kernel.name for kernel in KERNELS if not kernel.in_python} | set(speedups)
    own = [name for name in serving if name not in known_names or name in (families or ())]
    own = [name for name in own if name not in chosen]
    expected = {name: speedups[name] for name in chosen}
    return Guess((*chosen, *own), max(best, _HOPED_SPEEDUP) if own else best, seconds, expected)


def typical_seconds(spec: CallSpec) -> float:
    """About how many seconds a call takes on a small machine."""
    return spec.flops / _FLOPS_PER_SECOND + spec.bytes / _BYTES_PER_SECOND


@functools.cache
def shipped() -> tuple[Measured, ...]:
    """The measurements of the package, which `make priors` takes from benchmarks/results."""
    text = importlib.resources.files(__package__).joinpath(_SHIPPED).read_text(encoding="utf-8")
    return tuple(
        Measured.from_list(MachineClass.from_dict(part["machine"]), values)
        for part in json.loads(text)
        for values in part["calls"]
    )


def measured_text(measured: Iterable[Measured]) -> str:
    """Measurements as `shipped` reads them, a line each."""
    parts: dict[MachineClass, list[str]] = {}
    for one in measured:
        line = json.dumps(one.to_list(), separators=(",", ":"))
        parts.setdefault(one.machine, []).append(line)
    texts = (
        f'{{"machine": {json.dumps(dataclasses.asdict(machine))}, "calls": [\n'
        + ",\n".join(lines)
        + "\n]}"
        for machine, lines in parts.items()
    )
    return f"[\n{','.join(texts)}\n]\n"


def _serving(spec: CallSpec, reduced: bool, families: Collection[str] | None) -> list[str]:
    """The kernels beside TensorFlow's that can compute a call."""
    return [
        kernel.name
        for kernel in kernels(spec.op, spec.direction)[1:]
        if kernel.unsupported(spec) is None
        and (reduced or not kernel.reduces)
        and kernel.left_out(spec, families) is None
    ]


def _same_kind(spec: CallSpec, other: CallSpec) -> bool:
    mine, its = ((s.op, s.direction, s.dtype, len(s.strides)) for s in (spec, other))
    return mine == its


def _alikeness(one: Measured, spec: CallSpec, machine: MachineClass) -> float:
    """How much a measurement says of a call, from 0 to 1."""
    pairs = zip(_sizes(one.spec), _sizes(spec), strict=True)
    apart = sum(abs(math.log2(a / b)) for a, b in pairs)
    kinds = zip(_marks(one.spec), _marks(spec), strict=True)
    apart += _OTHER_KIND * sum(a != b for a, b in kinds)
    return one.machine.likeness(machine) * _HALF**apart


def _sizes(spec: CallSpec) -> tuple[float, ...]:
    """What decides how long a product takes: rows, columns, depth, its window."""
    rows = math.prod(size or 1 for size in spec.y[:-1])
    return (
        max(rows, 1) ** 0.5,  # doubling the rows changes less than doubling the channels
        max(spec.x[-1] or 1, 1),
        max(spec.y[-1] or 1, 1),
        max(math.prod(spec.kernel_size) if spec.strides else 1, 1),
    )


def _marks(spec: CallSpec) -> tuple[bool, ...]:
    """What sets kinds of calls apart: whether it has a window, strides, dilation, groups."""
    window = spec.kernel_size if spec.strides else ()
    return (
        math.prod(window) > 1,
        math.prod(spec.strides) > 1,
        math.prod(spec.dilation) > 1,
        spec.groups > 1,
    )


def _mean(values: Iterable[tuple[float, float]]) -> float:
    pairs = list(values)
    return sum(weight * value for weight, value in pairs) / sum(weight for weight, _ in pairs)
