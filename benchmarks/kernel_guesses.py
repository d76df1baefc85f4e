"""How much of what all kernels win is kept, where only those are tried that are likely to win.

Replays benchmarks/results, without measuring anything: each call of a model is guessed by the
calls of the other models, on all machines, and the kernels that are worth a look are taken: the
second only where the first turns out slower than the second is expected to be.

    python benchmarks/kernel_guesses.py
"""

import glob
import json
import math
import pathlib
from typing import Any

import _common
import priors
from absl import app

from tfaccel.ops.kernels import KERNELS, Guess, Measured, guess

# Below this a kernel is not used, as `tfaccel.ops.kernels` has it.
_WORTHWHILE = 1.05
# Those that the pass leaves out unless it is asked for them: they multiply in fewer bits.
_REDUCING = {kernel.name for kernel in KERNELS if kernel.reduces}
_COMPILED = {kernel.name for kernel in KERNELS if kernel.jit_compile}


def rows(path: str) -> list[tuple[dict[str, Any], Measured]]:
    """The rows of a file, each with what it tells."""
    data = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    machine = priors.machine_of(data["machine"])
    return [(row, priors.measured_of(row, machine)) for row in data["rows"]]


def _saved(one: Measured, names: set[str]) -> float:
    """The seconds of a call that the best of some kernels saves."""
    best = max((one.speedups[name] for name in names), default=1.0)
    return one.seconds * (1 - 1 / best) if best >= _WORTHWHILE else 0.0


def _tried(one: Measured, found: Guess, usable: set[str]) -> set[str]:
    """The kernels that are measured, as `tfaccel.ops.kernels.measure` goes about it."""
    tried: set[str] = set()
    plain = 0.0
    for name in found.kernels or ():
        if name in usable and found.expected.get(name, math.inf) >= plain:
            tried.add(name)
            if name not in _COMPILED:
                plain = max(plain, one.speedups[name])
    return tried


def replay(path: str, known: list[tuple[dict[str, Any], Measured]]) -> tuple[float, float]:
    """The share of the savings that is kept, and the share of the measurements that it takes."""
    kept = whole = 0.0
    tried = count = 0
    for row, one in rows(path):
        others = [other for r, other in known if r["model"] != row["model"]]
        found = guess(one.spec, one.machine, others)
        usable = set(one.speedups) - _REDUCING
        names = usable if found.kernels is None else _tried(one, found, usable)
        kept += row["layers"] * _saved(one, names)
        whole += row["layers"] * _saved(one, usable)
        tried, count = tried + len(names), count + len(usable)
    return kept / whole, tried / count


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    paths = sorted(glob.glob(str(_common.RESULTS / "kernels-*.json")))
    known = [row for path in paths for row in rows(path)]
    for path in paths:
        kept, tried = replay(path, known)
        name = pathlib.Path(path).stem
        print(f"{name}: {kept:.0%} of what is saved, by {tried:.0%} of the measurements")


if __name__ == "__main__":
    app.run(main)
