"""How far a candidate's numbers are from the untouched step's, and how far they may be.

Let u be the unit roundoff of the compute dtype (half its machine epsilon: 2^-24
for float32, 2^-11 for float16, 2^-8 for bfloat16).

**Rounding as noise.** A gradient computed with rounding errors is the exact one
plus an error. Stochastic gradient descent already lives with an error, the
minibatch's. An error of relative size r that is independent of the gradient
raises its second moment by r^2, which is what training with a batch smaller by
r^2 would do. So r = 0.25 costs at most 6 % of a batch's information, and a
cosine of 0.97 (`NOTICED`).

**Rounding in 16 bits.** Products are summed in float32 and rounded once, so a
gradient is off by a few u: 0.5 to 1.5 % in nets without batch normalizations. The
bounds leave 16 u, and none for a mistake (a missing term, a wrong axis, a scale off
by a tenth).

**Rounding within float32.** Another order of the same float32 sums differs by
sqrt(n) u for sums of n terms. Deep nets amplify it: differences of 1e-4 of the
gradient are common (a relu input that falls on the other side of zero). The
bounds 1e-2 and 5e-2 leave room for that and none for a mistake. Some nets amplify
more (batch normalizations at random initialisation, above all in 16 bits). So a plan
beyond a bound is compared with the untouched step under other roundings of its weights
(`tfaccel.autotune.comparison.faithfulness`), as that shows how much the model itself
amplifies rounding.

**Updates.** Handed the same gradients, optimizers differ by the rounding of their
hyperparameters: fused ops take Adam's 1 - 0.999 in float32, which is 1.3e-5 off.
Hence 1e-4 for the relative error of new weights and slots.

**Outputs.** A loss is a mean over a batch, an output of a prediction is not, so in 16 bits it may
be off by a little more; in float32 rounding is all there is.

**Zero gradients.** Some exact gradients are zero (a bias before
BatchNormalization, the key bias of attention): what either side computes is
rounding, and its relative error says nothing. Errors are therefore measured
against the larger of the variable's own norm and the norm that it would have at
the root mean square of its layer's variables (or, for a layer whose gradients are
all zero, at a thousandth of the whole model's). So are moving statistics, by what the
step adds to them: one that is not moved on is off by 1, however small the step.
"""

import dataclasses
import functools
import math
import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from tfaccel.measure.apart import Apart, norm, overall, square, update_error
from tfaccel.measure.apart import relative_error as relative_error
from tfaccel.measure.finite import finite_where


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """The largest differences from the untouched step that a plan may show.

    Attributes:
        gradient: relative error of all gradients taken together.
        variable: relative error of one variable's gradient.
        cosine: smallest cosine between the two gradients of one variable.
        loss: relative error of each loss.
        update: relative error of one variable's new value and of each optimizer
            slot, both sides given the same gradients.
        state: relative error of what the step adds to one non-trainable float variable
            (BatchNormalization's statistics).
        output: relative error of each output of a prediction.
    """

    gradient: float
    variable: float
    cosine: float
    loss: float
    update: float = 1e-4
    state: float = 1e-2
    output: float = 1e-3


# Dtypes of products with less than float32's precision.
SIXTEEN_BITS = ("bfloat16", "float16")
TOLERANCES: Mapping[str, Tolerance] = {
    "float64": Tolerance(1e-8, variable=1e-6, cosine=1 - 1e-9, loss=1e-9, state=1e-6, output=1e-9),
    "float32": Tolerance(1e-2, variable=5e-2, cosine=0.998, loss=1e-4, state=1e-2, output=1e-4),
    "float16": Tolerance(3e-2, variable=3e-2, cosine=0.998, loss=1e-2, state=2e-2, output=1e-2),
    "bfloat16": Tolerance(6e-2, variable=6e-2, cosine=0.998, loss=3e-2, state=5e-2, output=5e-2),
}
# Errors that training would not notice: see above.
NOTICED = Tolerance(0.25, variable=0.6, cosine=0.8, loss=3e-2, state=5e-2, output=5e-2)
# The relative errors of a step that the net's own may widen, and that one number stands for.
_RELATIVE = ("gradient", "variable", "loss", "state", "output")
# How much further than the untouched step from itself a plan may be: where that is far, and
# where it is rounding.
_LUCKY, _LIKELY = 1.5, 4.0


def as_tolerance(tolerance: "Tolerance | float | None", compute_dtype: str) -> Tolerance:
    """The tolerance that a user's argument stands for, for a plan that computes in a dtype.

    None stands for the defaults, a number for the relative error that one variable's gradient may
    have (the other bounds follow from it). ValueError for a number that is not positive and finite,
    TypeError for anything else.
    """
    usual = TOLERANCES.get(compute_dtype, TOLERANCES["float32"])
    if tolerance is None:
        return usual
    if isinstance(tolerance, Tolerance):
        return tolerance
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(
            "`tolerance` must be None, a positive number or a tfaccel.Tolerance. "
            f"Received: {tolerance!r} (of type {type(tolerance).__name__})"
        )
    if not 0 < tolerance < float("inf"):
        raise ValueError(f"`tolerance` must be positive and finite. Received: {tolerance!r}")
    return dataclasses.replace(
        usual, cosine=1 - tolerance**2, **dict.fromkeys(_RELATIVE, float(tolerance))
    )


@dataclasses.dataclass(frozen=True)
class Drift:
    """The differences that were found; every number is relative and unitless.

    Attributes:
        gradient, variable, cosine, loss, update, state, output: as in `Tolerance`, the worst.
        finite: whether everything the candidate computed is finite.
        worst: the name of the variable behind `variable`, or of the output behind `output`.
    """

    gradient: float = 0.0
    variable: float = 0.0
    cosine: float = 1.0
    loss: float = 0.0
    update: float = 0.0
    state: float = 0.0
    finite: bool = True
    worst: str = ""
    output: float = 0.0

    @property
    def main(self) -> float:
        """The number for a table: that of all gradients, in predictions that of the outputs."""
        return max(self.gradient, self.output)

    def violation(self, tolerance: Tolerance) -> str | None:
        """The first bound that is broken, in words; None when all hold."""
        if not self.finite:
            return "a loss, gradient or output is not finite where the baseline's is"
        for name in ("loss", "gradient", "variable", "update", "state", "output"):
            found, allowed = getattr(self, name), getattr(tolerance, name)
            if not found <= allowed:
                where = f" ({self.worst})" if name in ("variable", "output") else ""
                return f"{name} off by {found:.2g}{where}, {allowed:.2g} allowed"
        if not self.cosine >= tolerance.cosine:
            return f"gradient cosine {self.cosine:.3f}, {tolerance.cosine:.3f} required"
        return None


def widened(tolerance: Tolerance, own: Drift) -> Tolerance:
    """The tolerance for a step that is random, or that amplifies rounding.

    A plan may draw other random numbers than the untouched step, and rounds in another way. Where
    that shows, the plan must be as close to the untouched step as that is to itself under another
    seed and another rounding, with a margin of a half.

    As long as that is noise that training would not notice (16 bits make as much), four
    times are allowed: other weights are one rounding of many. ResNet50's gradient in float32
    is 2 % off that in float64, its own drift is 1 %, and faithful plans were 0.3 to 2.7 % off.

    Args:
        tolerance: for a step without randomness, that amplifies little.
        own: the untouched step's drift from itself.
    """

    def room(name: str) -> float:
        drift = getattr(own, name)
        likely = min(_LIKELY * drift, getattr(NOTICED, name))
        return max(getattr(tolerance, name), _LUCKY * drift, likely)

    # The cosine falls with the square of the error.
    apart = 1 - own.cosine
    likely = min(_LIKELY**2 * apart, 1 - NOTICED.cosine)
    cosine = min(tolerance.cosine, 1 - max(_LUCKY * apart, likely))
    return dataclasses.replace(tolerance, cosine=cosine, **{n: room(n) for n in _RELATIVE})


@dataclasses.dataclass(frozen=True)
class Observation:
    """What one step computed, seen from outside, as NumPy arrays."""

    losses: Mapping[str, np.ndarray]  # the step's losses by name
    # Gradients by name of variable, before any optimizer saw them.
    gradients: Mapping[str, np.ndarray]
    # Trained variables and optimizer slots after the step, by name.
    trained: Mapping[str, np.ndarray]
    before: Mapping[str, np.ndarray]  # the same before the step
    state: Mapping[str, np.ndarray]  # non-trainable float variables after the step
    state_before: Mapping[str, np.ndarray]  # the same before the step
    counters: Mapping[str, np.ndarray]  # integer variables after the step
    # The gradients as the optimizers got them: tensors, or IndexedSlices, which Keras's optimizers
    # do not treat as they treat their sum.
    handed: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def lightened(self) -> "Observation":
        """Without weights and slots, which are the larger part; enough for a yardstick."""
        return dataclasses.replace(self, trained={}, before={}, counters={}, handed={})

    def apart(self, other: "Observation") -> Mapping[str, Apart]:
        """How far the gradients of another observation are from these, which is found out once."""
        known, found = self._found.get(id(other), (lambda: None, {}))
        if known() is not other:
            found = {k: Apart.of(v, other.gradients[k]) for k, v in self.gradients.items()}
            self._found[id(other)] = weakref.ref(other), found
        return found

    @functools.cached_property
    def _found(self) -> dict[int, Any]:
        return {}

    @functools.cached_property
    def floors(self) -> dict[str, float]:
        """What errors of the gradients are measured against, as `floors` has it."""
        return floors(self.gradients)


def compare(reference: Observation, candidate: Observation) -> Drift:
    """The candidate's drift from the reference, worst case over everything observed."""
    counters, losses = reference.counters.items(), reference.losses.items()
    same_counters = all(np.array_equal(value, candidate.counters[name]) for name, value in counters)
    relative, cosine, worst = _per_variable(reference, candidate)
    apart = reference.apart(candidate).values()
    pairs = (reference.losses, candidate.losses), (reference.gradients, candidate.gradients)
    return Drift(
        gradient=overall(apart) if all(one.is_alike for one in apart) else math.inf,
        variable=relative,
        cosine=cosine,
        loss=max((loss_error(v, candidate.losses[k]) for k, v in losses), default=0.0),
        update=_largest_update(reference, candidate) if same_counters else float("inf"),
        state=_largest_state(reference, candidate),
        finite=all(finite_where(a[name], b[name]) for a, b in pairs for name in a),
        worst=worst,
    )


def loss_error(reference: np.ndarray, candidate: np.ndarray) -> float:
    """The relative error of a loss; none where it is what rounding the loss itself may do.

    Keras logs losses in float32 also where a model computes in float64.
    """
    off = np.asarray(candidate, np.float64) - np.asarray(reference, np.float64)
    is_rounding = norm(off) <= rounding_of(np.asarray(reference))
    return 0.0 if is_rounding else relative_error(reference, candidate)


def _largest_update(reference: Observation, candidate: Observation) -> float:
    """The worst error of a new value, relative to the value or, if larger, to the change."""
    return max(
        (
            update_error(
                value, reference.before[name], candidate.trained[name], candidate.before[name]
            )
            for name, value in reference.trained.items()
        ),
        default=0.0,
    )


def _per_variable(reference: Observation, candidate: Observation) -> tuple[float, float, str]:
    """The worst relative error, the worst cosine, and the variable with the first."""
    largest, smallest, worst = 0.0, 1.0, ""
    for name, apart in reference.apart(candidate).items():
        floor = reference.floors[name] * apart.count**0.5
        error = apart.relative(floor)
        if error > largest:
            largest, worst = error, name
        if apart.norm >= 0.5 * floor:
            smallest = min(smallest, apart.cosine)
    return largest, smallest, worst


def _largest_state(reference: Observation, candidate: Observation) -> float:
    after, scales, errors = changes(candidate), state_scales(reference), [0.0]
    for name, change in changes(reference).items():
        if norm(np.nan_to_num(after[name] - change)) > rounding_of(reference.state[name]):
            errors.append(relative_error(change, after[name], scales[name]))
    return max(errors)


def state_scales(reference: Observation) -> dict[str, float]:
    """The norms that errors in what a step adds to state are relative to.

    A mean that hardly changes is rounded as its layer's larger numbers are, averaged.
    """
    added = changes(reference)
    least = floors(added)
    return {
        name: max(norm(np.nan_to_num(change)), 0.1 * least[name] * change.size**0.5)
        for name, change in added.items()
    }


def changes(observation: Observation) -> dict[str, np.ndarray]:
    """What the step added to each non-trainable float variable."""
    return {
        name: np.asarray(value, np.float64) - observation.state_before[name]
        for name, value in observation.state.items()
    }


def rounding_of(value: np.ndarray) -> float:
    """The norm of what rounding may do to a stored array in an update or two."""
    kind = value.dtype if value.dtype.kind == "f" else np.dtype(np.float32)
    return 4 * float(np.finfo(kind).eps) * norm(np.nan_to_num(np.asarray(value, np.float64)))


def floors(values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """For each `"layer/variable"` the root mean square that its error is measured against."""
    layer_of = {name: name.rpartition("/")[0] for name in values}
    members: dict[str, list[tuple[float, int]]] = {}
    for name, value in values.items():
        members.setdefault(layer_of[name], []).append(_finite_square(value))
    by_layer = {layer: _root_mean(squares) for layer, squares in members.items()}
    least = 1e-3 * _root_mean(one for squares in members.values() for one in squares)
    return {name: max(by_layer[layer_of[name]], least) for name in values}


def _finite_square(array: np.ndarray) -> tuple[float, int]:
    """The sum of the squares of an array's finite elements, and how many there are."""
    found = square(array)
    if math.isfinite(found):
        return found, np.size(array)
    finite = np.asarray(array)[np.isfinite(array)]
    return square(finite), finite.size


def _root_mean(squares: Iterable[tuple[float, int]]) -> float:
    found = list(squares)
    count = sum(count for _, count in found)
    return math.sqrt(sum(one for one, _ in found) / count) if count else 0.0
