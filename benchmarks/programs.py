"""Whole programs, as people write them, with and without `tfaccel run`.

Each run is a process of its own, from its start to its end: imports, tracing, trials and races are
all part of the time. A program runs as it is, then under `tfaccel run` with an empty cache, then
under `tfaccel run` with the cache that it filled (not with `--noagain`), as often as `--turns`
says; in each second turn it runs as it is last. Losses are what the program prints: those of the
runs are compared. Runs of ten seconds differ by what else the machine does: the seconds that they
use of all cores tell more than the clock does.

    python benchmarks/programs.py --turns 5
    python benchmarks/programs.py --turns 3 --noagain
    python benchmarks/programs.py --programs convnet,vae --folder path/to/programs
"""

import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

import _common
import _processes
from absl import app, flags

_PROGRAMS = flags.DEFINE_list("programs", None, "names without .py; all of the folder by default")
_FOLDER = flags.DEFINE_string(
    "folder", str(_common.REPOSITORY / "tests" / "programs"), "where the programs are"
)
_TURNS = flags.DEFINE_integer("turns", 5, "runs of each kind", lower_bound=1)
_AGAIN = flags.DEFINE_bool("again", True, "also with the cache that the run before has filled")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with a results file")

_KINDS = ("python", "tfaccel run", "again")
_NO_FIT = "there was no `fit`"


@dataclasses.dataclass(frozen=True)
class _Program:
    """A program to be run."""

    path: pathlib.Path

    @property
    def name(self) -> str:
        return self.path.stem


def chosen(folder: pathlib.Path, names: list[str] | None) -> list[_Program]:
    """The programs of these names, or all.

    Args:
        folder: where they are.
        names: without their endings; None for all.
    """
    found = {path.stem: _Program(path) for path in sorted(folder.glob("*.py"))}
    unknown = [name for name in names or found if name not in found]
    if unknown or not found:
        sys.exit(f"There is no program {', '.join(unknown)} in {folder}: {', '.join(found)}")
    return [found[name] for name in names or found]


def run(program: _Program, under: bool, cache: str) -> dict[str, Any]:
    """One run: its times, the losses that it prints, and what it is told at its end.

    Args:
        program: what to run.
        under: whether `tfaccel run` runs it.
        cache: the folder of plans.
    """
    words = [*(["-m", "tfaccel", "run"] if under else []), str(program.path)]
    done = _processes.timed(words, cache, {"TFACCEL_CACHE_DIR": cache})
    return {
        "seconds": done.seconds,
        "cpu_seconds": done.cpu_seconds,
        "losses": [float(word) for word in done.out.split()],
        "told": done.said if under else "",
    }


def measure(program: _Program) -> _common.Row:
    """A row of results: the kinds take turns, and who begins changes."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _kinds()}
    plain, *under = found
    for turn in range(_TURNS.value):
        with tempfile.TemporaryDirectory() as cache:
            # The second run under tfaccel always comes after the first, whose cache it has.
            for kind in (*under, plain) if turn % 2 else (plain, *under):
                found[kind].append(run(program, kind != plain, cache))
    return _summary(found)


def _kinds() -> tuple[str, ...]:
    return _KINDS if _AGAIN.value else _KINDS[:-1]


def _summary(found: dict[str, list[dict[str, Any]]]) -> _common.Row:
    plain, *under = found
    row: _common.Row = {}
    for unit, ratios in (("seconds", "ratios"), ("cpu_seconds", "cpu_ratios")):
        each = {kind: [one[unit] for one in runs] for kind, runs in found.items()}
        row[unit] = each
        row[ratios] = {
            kind: [a / b for a, b in zip(each[plain], each[kind], strict=True)] for kind in under
        }
    told = found[under[0]][-1]["told"]
    return row | {
        "loss_error": _loss_error(found),
        "has_fit": _NO_FIT not in told,
        "told": _closing(told),
        "last_losses": {kind: [one["losses"][-1] for one in runs] for kind, runs in found.items()},
    }


def _loss_error(found: dict[str, list[dict[str, Any]]]) -> float:
    """How far the last losses are from those without, at most, as a part of the first loss."""
    plain = found[_KINDS[0]]
    return max(
        abs(one["losses"][-1] - other["losses"][-1]) / abs(other["losses"][0])
        for kind in found
        if kind != _KINDS[0]
        for one, other in zip(found[kind], plain, strict=True)
    )


def _spread(values: list[float], digits: int, unit: str) -> str:
    """The median, with the least and the most."""
    middle = f"{statistics.median(values):.{digits}f}{unit}"
    return f"{middle} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def _cell(kind: str, key: str, digits: int, unit: str) -> Any:
    def cell(row: _common.Row) -> str:
        values = row.get(key, {}).get(kind)
        return _spread(values, digits, unit) if values else "-"

    return cell


def _plan(row: _common.Row) -> str:
    """What `tfaccel run` said of the program."""
    if "error" in row:
        return str(row["error"])
    return "chosen by fit" if row["has_fit"] else "no `fit`: left as it is"


def _summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    whole = [row for row in rows if "cpu_ratios" in row]
    if not whole:
        return {}, ()
    numbers: dict[str, Any] = {}
    for key, name in (("ratios", "speedup"), ("cpu_ratios", "cpu_speedup")):
        gains = [statistics.median(row[key][_KINDS[1]]) for row in whole]
        numbers |= {name: statistics.geometric_mean(gains), f"least_{name}": min(gains)}
    plain = [row["seconds"][_KINDS[0]] for row in whole]
    noises, noise = [_noise(seconds) for seconds in plain if len(seconds) > 1], ""
    if noises:
        numbers["noise"] = statistics.median(noises)
        noise = (
            f" Runs of one program as it is differ by {numbers['noise']:.0%} (the most over the "
            "least, median over programs)."
        )
    return numbers, (
        f"Geometric mean with an empty cache over {len(whole)} programs: "
        f"{numbers['speedup']:.2f}x by the clock (the least {numbers['least_speedup']:.2f}x), "
        f"{numbers['cpu_speedup']:.2f}x by the seconds of all cores (the least "
        f"{numbers['least_cpu_speedup']:.2f}x).",
        "Medians of whole processes, with the least and the most." + noise,
        *(f"{row['model']}:\n\n```\n{row['told']}\n```" for row in whole),
    )


def _closing(told: str) -> str:
    """What `tfaccel run` says at the program's end, without what others said before."""
    lines = [line.rstrip() for line in told.splitlines()]
    begins = (" model ", "tfaccel:")
    first = next((at for at, line in enumerate(lines) if line.startswith(begins)), len(lines))
    return "\n".join(lines[first:]).strip("\n")


def _noise(seconds: list[float]) -> float:
    """How far runs of one kind are apart."""
    return max(seconds) / min(seconds) - 1


_COLUMNS = (
    _common.Column("program", lambda row: row["model"], is_number=False),
    *(_common.Column(f"{kind}, s", _cell(kind, "seconds", 1, "")) for kind in _KINDS),
    *(_common.Column(kind, _cell(kind, "ratios", 2, "x")) for kind in _KINDS[1:]),
    *(_common.Column(f"{kind}, CPU s", _cell(kind, "cpu_seconds", 1, "")) for kind in _KINDS[:2]),
    _common.Column("by CPU s", _cell(_KINDS[1], "cpu_ratios", 2, "x")),
    _common.Column(
        "last loss off by", lambda row: f"{row['loss_error']:.1%}" if "loss_error" in row else "-"
    ),
    _common.Column("fits", _plan, is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    results = _common.Results(
        "programs",
        "Whole programs with and without `tfaccel run`",
        _COLUMNS,
        pathlib.Path(_OUTPUT.value),
        _RESUME.value,
    )
    _processes.compile_ours()
    programs = chosen(pathlib.Path(_FOLDER.value).resolve(), _PROGRAMS.value)
    _common.measure_each(results, programs, measure, _summarize)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
