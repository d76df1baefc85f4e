"""Which kernels the layers of one workload use, and what was measured to say so."""

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from tfaccel.core.machine_class import MachineClass
from tfaccel.measure.timing import Clock
from tfaccel.measure.units import ratio
from tfaccel.ops.kernels import (
    DIRECTIONS,
    REFERENCE,
    CallSpec,
    Candidate,
    Direction,
    Guess,
    Kernel,
    Ranking,
    Store,
    guess,
    kernels,
    measure,
    reference,
    shipped,
)
from tfaccel.system.device import current_device

# Calls that may save less than this share of a step are not measured.
LEAST_SHARE = 1e-3


class Selection:
    """The kernels of a workload's layers, in the directions in which products are computed.

    Args:
        reduced: whether kernels may multiply in fewer bits than the operands have.
        directions: those that are computed.
        exhaustive: whether all kernels are measured, not only those that are likely to win.
        families: kernels to measure that are otherwise left out; None where the plan may be
            saved.

    Attributes:
        seen: the calls of each layer, forward, by the layer's name.
        looked_at: the kinds of plan under which all calls have been noted.
        recording: whether calls are being noted; meanwhile all layers run Keras's own code.
        rankings: what was measured for this workload.
    """

    def __init__(
        self,
        reduced: bool = False,
        directions: Sequence[Direction] = DIRECTIONS,
        exhaustive: bool = False,
        families: Collection[str] | None = (),
    ):
        self.seen: dict[str, list[CallSpec]] = {}
        self._reduced = reduced
        self._directions = tuple(directions)
        self._exhaustive = exhaustive
        self._families = families
        self.rankings: dict[CallSpec, Ranking] = {}
        self.looked_at: set[object] = set()
        self.recording = False

    def wanted(self, layer: str, specs: list[CallSpec], compiled: bool = True) -> bool:
        """Whether a kernel of tfaccel's is to compute any direction of a layer's products.

        `compiled` says whether it may be one that XLA compiles for each size.
        """
        if self.recording:
            noted = self.seen.setdefault(layer, [])
            noted += [spec for spec in specs if spec not in noted]
            return False
        ways = (spec.along(direction) for spec in specs for direction in self._directions)
        return any(self.choose(spec, compiled).name != REFERENCE for spec in ways)

    def choose(self, spec: CallSpec, compiled: bool = True) -> Kernel:
        """The kernel for a call: what was measured for this workload, else on this machine."""
        ranking = self.ranking(spec)
        if ranking is None:
            return reference(spec.op, spec.direction)
        return ranking.kernel_for(spec, **self._allowed, compiled=compiled)

    @property
    def _allowed(self) -> dict[str, Any]:
        """Which kernels may be used, as `Ranking.best` takes it."""
        return {"reduced": self._reduced, "in_xla": False, "families": self._families}

    def ranking(self, spec: CallSpec) -> Ranking | None:
        """What is known of a call; None where nothing is."""
        fitting = (r for s, r in self.rankings.items() if s.fits(spec))
        return next(fitting, None) or Store.at().ranking(spec)

    def measure(self, step_seconds: float, clock: Clock, deadline: float) -> None:
        """Measures the calls that were seen and are not known yet.

        The calls that are expected to save most come first, each with the kernels that are likely
        to win it. Left to TensorFlow are calls with a size that is known only while they run
        (behind a layer of the user's that loses the batch's), and calls that count little in a step
        of `step_seconds`; at 0.0 every call is measured. None is begun after `deadline`.
        """
        store = Store.at()
        found = 0
        try:
            for saved_seconds, spec, expected in self._worth_measuring(store):
                if saved_seconds < LEAST_SHARE * step_seconds:
                    break
                found += self._measure(spec, expected, store, clock, deadline)
        finally:
            if found:
                store.save()

    def _worth_measuring(self, store: Store) -> list[tuple[float, CallSpec, Guess]]:
        """The calls on which something may be saved, with the seconds of a step; most first."""
        seen = (spec for specs in self.seen.values() for spec in specs)
        counts = Counter(spec for spec in seen if spec.is_known)
        known = () if self._exhaustive else (*store.measured(), *shipped())
        machine = MachineClass.of(current_device())
        ways = ((n, spec.along(way)) for spec, n in counts.items() for way in self._directions)
        more = (known, self._reduced, self._families)
        calls = [(n, spec, guess(spec, machine, *more)) for n, spec in ways]
        worth = [(n * g.saved_seconds, spec, g) for n, spec, g in calls if g.kernels != ()]
        return sorted(worth, key=lambda call: -call[0])

    def _measure(
        self, spec: CallSpec, expected: Guess, store: Store, clock: Clock, deadline: float
    ) -> bool:
        """Looks a call's ranking up, or measures it if there is time; whether it was measured."""
        known = store.ranking(spec)
        is_new = (
            known is None
            or not (known.complete if self._exhaustive else known.is_settled)
            or known.lacks(self._newly_tried(spec, expected))
        )
        if is_new:
            # Before any other kernel, TensorFlow's own is traced and run four times.
            if clock() + 4 * expected.seconds > deadline:
                return False
            more = (expected.kernels, self._families, expected.expected)
            known = measure(spec, clock, deadline, *more)
            store.add(known)
        assert known is not None
        self.rankings[spec] = known
        return is_new

    def _newly_tried(self, spec: CallSpec, expected: Guess) -> list[str]:
        """Kernels that earlier measurements may have left out, and that this workload wants."""
        return [
            kernel.name
            for kernel in kernels(spec.op, spec.direction)
            if kernel.in_python
            and kernel.left_out(spec, self._families) is None
            and (expected.kernels is None or kernel.name in expected.kernels)
        ]

    def words(self, spec: CallSpec) -> tuple[str, tuple[str, ...]]:
        """What runs for a call, and why nothing else, in words.

        Returns:
            The kernels of the directions that have one of tfaccel's, such as `"input
            gradient by matmul_1x1 (3.10x)"`, or nothing; and a clause for each direction
            that was measured with what the other kernels did.
        """
        used, others = [], []
        for direction in self._directions:
            ranking = self.ranking(spec.along(direction))
            if ranking is None:
                continue
            chosen = ranking.kernel(**self._allowed)
            name, way = chosen.name, direction.replace("_", " ")
            best = next(c for c in ranking.candidates if c.kernel == name)
            if name != REFERENCE and best.speedup is not None:
                used.append(f"{way} by {name} ({ratio(best.speedup.median)})")
            told = [c for c in ranking.candidates if c.kernel not in (name, REFERENCE)]
            rest = [str(c) for c in told if not self._goes_without_saying(spec, direction, c)]
            others.append(f"{way}: {', '.join(rest)}")
        return "; ".join(used), tuple(others)

    def _goes_without_saying(self, spec: CallSpec, way: Direction, candidate: Candidate) -> bool:
        """Whether nobody asked for a kernel that was not tried."""
        kernel = next((k for k in kernels(spec.op, way) if k.name == candidate.kernel), None)
        asked = candidate.kernel in (self._families or ())
        return bool(kernel and kernel.in_python and candidate.speedup is None and not asked)
