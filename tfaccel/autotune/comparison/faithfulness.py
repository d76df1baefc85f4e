"""Whether a candidate's step is the untouched step but for rounding, variable by variable.

A plan may do what rounding does, and nothing else. Two yardsticks measure what that is for this
net. Neither costs a trace, as the untouched step is traced already:

**Sensitivity.** The untouched step run again, its weights (in 16 bits its inputs, too) rounded
otherwise. A net that amplifies rounding does so without any plan: batch normalizations at their
first weights make gradients differ by 0.5 to 1.1 of their norm if weights are rounded once to
bfloat16. Under Keras's mixed policy the errors of ResNet50, MobileNetV2 and a net of three
convolutions are 0.9 to 1.7 times the sensitivity, variable by variable, 3.7 at most where
nothing amplifies.

Rounding once does not change weights that are exact in 16 bits: the ones of a normalization, or
all of a model that was kept in 16 bits. Where a variable is beyond its bound, all weights are moved
by as much as rounding usually moves them, and the larger of both sensitivities counts. In
bfloat16 the errors of EfficientNetB0 are 2.4 times the first at the median and 5.9 at most,
2.0 and 3.3 times the second.

A loss is one number, which a single rounding may leave alone by luck: of ResNet50 after its first
steps two roundings moved it by 0.07 and 0.6 %, 16-bit plans by 2 and 4.5 %, and either turned the
whole gradient around. So in 16 bits a loss may be off by a tenth of what rounding moves the
gradient by.

**Minibatch noise.** How far the gradients on another batch are. In 16 bits a tenth of it is
allowed: training does not notice what adds 1 % to the variance that it lives with
(McCandlish et al., An Empirical Model of Large-Batch Training, arXiv:1812.06162).

**Scale.** Rounding errors have any direction; a wrong scale has the gradient's. So the part of an
error along the gradient must be small by itself: of a random error with n components it is
1 / sqrt(n).

In 16 bits the sensitivity may be as large as the gradient, which would hide any mistake. So the
passes other than the 16-bit ones are compared in float32, by the same plan without those.
"""

import dataclasses
import math
from collections.abc import Sequence

from tfaccel.measure.apart import Apart, overall
from tfaccel.measure.numerics import (
    NOTICED,
    SIXTEEN_BITS,
    Drift,
    Observation,
    Tolerance,
    changes,
    compare,
    loss_error,
    relative_error,
    rounding_of,
    state_scales,
)

# How many times the untouched step's own error a plan's may be, as that is one random sample.
_LIKELY = 4.0
# The same for float32 steps whose own error is as large as that of 16 bits: a step that is random
# or chaotic itself must only be no more so under a plan.
_CHAOTIC = 1.5
# The shares of the minibatch noise, and of the whole gradient, that 16 bits may add.
_NOISE_SHARE = 0.1
_WHOLE_SHARE = 1e-3
# By what factor, less 1, a gradient's norm may be too large or too small in 16 bits.
_MOST_TIMES = 1.0
# What the loss may be off by in 16 bits, as a share of what rounding moves the whole gradient by.
_LOSS_SHARE = 0.1


@dataclasses.dataclass(frozen=True)
class Yardsticks:
    """The untouched step under other roundings, and on another batch.

    Attributes:
        dtype: the least precise dtype of what is compared.
        nears: the untouched step with weights rounded otherwise, and with all weights moved by
            as much as rounding usually moves them, as far as they are needed.
        other: the untouched step on another batch; None where none was kept, or none is needed.
    """

    dtype: str
    nears: tuple[Observation, ...] = ()
    other: Observation | None = None

    @property
    def in_16_bits(self) -> bool:
        """Whether 16 bits round what is compared."""
        return self.dtype in SIXTEEN_BITS


@dataclasses.dataclass(frozen=True)
class Violation:
    """A bound that a candidate breaks.

    Attributes:
        kind: of the error: `"finite"`, `"loss"`, `"gradient"`, `"scale"`, `"update"`, `"state"`.
        where: the name of the variable or loss.
        found, allowed: relative errors.
    """

    kind: str
    where: str = ""
    found: float = math.inf
    allowed: float = 0.0

    def __str__(self) -> str:
        if self.kind == "finite":
            return "a loss or gradient is not finite where the baseline's is"
        where = f" ({self.where})" if self.where else ""
        return f"{self.kind} off by {self.found:.2g}{where}, {self.allowed:.2g} allowed"


def violation(
    reference: Observation,
    candidate: Observation,
    tolerance: Tolerance,
    yardsticks: Yardsticks,
    drift: Drift | None = None,
) -> Violation | None:
    """The bound that a candidate breaks by most; None where it keeps all.

    Args:
        reference: the untouched step.
        candidate: the step under a plan, from the same state on the same batch, its optimizers
            handed the reference's gradients.
        tolerance: the dtype's.
        yardsticks: what the untouched step makes of rounding.
        drift: what `compare` says of the two, where that is known.
    """
    drift = drift or compare(reference, candidate)
    if not drift.finite:
        return Violation("finite")
    if not drift.update <= tolerance.update:
        return Violation("update", "", drift.update, tolerance.update)
    broken = [
        *_losses(reference, candidate, tolerance, yardsticks),
        *_gradients(reference, candidate, tolerance, yardsticks),
        *_states(reference, candidate, tolerance, yardsticks),
    ]
    return max(broken, key=lambda one: one.found / max(one.allowed, 1e-30), default=None)


def _losses(
    reference: Observation, candidate: Observation, tolerance: Tolerance, yardsticks: Yardsticks
) -> list[Violation]:
    found = []
    free = 0.0
    if yardsticks.in_16_bits:
        free = _LOSS_SHARE * min(1.0, _turned(reference, yardsticks.nears))
    for name, value in reference.losses.items():
        error = loss_error(value, candidate.losses[name])
        owns = (relative_error(value, near.losses[name]) for near in yardsticks.nears)
        own = max(owns, default=0.0)
        allowed = max(free, _room(1.0, tolerance.loss, own, yardsticks, "loss"))
        if not error <= allowed:
            found.append(Violation("loss", name, error, allowed))
    return found


def _turned(reference: Observation, nears: Sequence[Observation]) -> float:
    """How far rounding moves the whole gradient, relative to its norm."""
    moved = (overall(reference.apart(near).values()) for near in nears)
    return max(filter(math.isfinite, moved), default=0.0)


def _states(
    reference: Observation, candidate: Observation, tolerance: Tolerance, yardsticks: Yardsticks
) -> list[Violation]:
    """Moving statistics and their kind, by what the step adds to them."""
    before, after = changes(reference), changes(candidate)
    nears = [changes(near) for near in yardsticks.nears]
    scales = state_scales(reference)
    found = []
    for name, change in before.items():
        scale, error = scales[name], Apart.of(change, after[name]).error
        own = max((Apart.of(change, near[name]).error for near in nears), default=0.0)
        allowed = _room(scale, tolerance.state, own, yardsticks, "state")
        allowed = max(allowed, rounding_of(reference.state[name]))
        if not error <= allowed:
            found.append(_relative("state", name, error, allowed, scale))
    return found


def _gradients(
    reference: Observation, candidate: Observation, tolerance: Tolerance, yardsticks: Yardsticks
) -> list[Violation]:
    aparts = reference.apart(candidate)
    nears = [reference.apart(near) for near in yardsticks.nears]
    whole = math.sqrt(sum(apart.size for apart in aparts.values()))
    found = []
    for name, apart in aparts.items():
        owns = [near[name] for near in nears]
        scale = max(apart.norm, reference.floors[name] * apart.count**0.5)
        free = _free(name, reference, whole, yardsticks)
        own = max((one.error for one in owns), default=0.0)
        allowed = max(free, _room(scale, tolerance.variable, own, yardsticks, "variable"))
        if not apart.error <= allowed:
            found.append(_relative("gradient", name, apart.error, allowed, scale))
        elif apart.error > max(free, tolerance.variable * scale):
            found.extend(_mistaken_scale(name, apart, owns, tolerance, yardsticks))
    return found


def _mistaken_scale(
    name: str,
    apart: Apart,
    owns: Sequence[Apart],
    tolerance: Tolerance,
    yardsticks: Yardsticks,
) -> list[Violation]:
    """A wrong scale within an error that by its size may be rounding."""
    own = max((one.error for one in owns), default=0.0)
    by_chance = _LIKELY * own / (apart.norm * math.sqrt(apart.count)) if apart.size else math.inf
    along = _along(apart)
    usual = max(map(_along, owns), default=0.0)
    allowed = max(tolerance.variable, _LIKELY * usual, by_chance)
    if yardsticks.in_16_bits:
        # Where sensitivity is as large as the gradient, directions say nothing, norms still do:
        # those of ResNet50's variables are 0.7 to 1.25 times what they are in float32.
        along = _times(apart)
        usual = max(map(_times, owns), default=0.0)
        allowed = max(_MOST_TIMES, _LIKELY * usual, by_chance)
    return [] if along <= allowed else [Violation("scale", name, along, allowed)]


def _room(scale: float, bound: float, own: float, yardsticks: Yardsticks, kind: str) -> float:
    """The largest error allowed: the dtype's bound, or the untouched step's own by rounding."""
    if yardsticks.in_16_bits:
        return max(bound * scale, _LIKELY * own)
    noticed = getattr(NOTICED, kind) * scale
    return max(bound * scale, _CHAOTIC * own, min(_LIKELY * own, noticed))


def _free(name: str, reference: Observation, whole: float, yardsticks: Yardsticks) -> float:
    """The error that training would not notice in 16 bits, whatever else holds."""
    if not yardsticks.in_16_bits:
        return 0.0
    free = _WHOLE_SHARE * whole
    if yardsticks.other is not None:
        # Two batches differ by the noise of both.
        apart = reference.apart(yardsticks.other)[name].error
        free = max(free, _NOISE_SHARE * apart / math.sqrt(2))
    return free


def _along(apart: Apart) -> float:
    """The part of an error that lies along the gradient, relative to it."""
    return abs(apart.along) / apart.size if apart.size else 0.0


def _times(apart: Apart) -> float:
    """By what factor, less 1, an array's norm is too large or too small."""
    right, found = apart.norm, math.sqrt(apart.other)
    return max(right, found) / max(min(right, found), 1e-30) - 1


def _relative(kind: str, name: str, error: float, allowed: float, scale: float) -> Violation:
    scale = scale or 1.0
    return Violation(kind, name, error / scale, allowed / scale)
