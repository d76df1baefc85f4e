"""Whole programs, as people write them, with and without `tfaccel run`.

Each run is a process of its own, from its start to its end: imports, tracing, trials and races are
all part of the time. A program runs as it is, then under `tfaccel run` with an empty cache, then
under `tfaccel run` with the cache that it filled, as often as `--turns` says. Losses are what
the program prints: those of the runs are compared.

    python benchmarks/programs.py --turns 5
    python benchmarks/programs.py --programs convnet,vae --folder path/to/programs
"""

import dataclasses
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import _common
from absl import app, flags

_PROGRAMS = flags.DEFINE_list("programs", None, "names without .py; all of the folder by default")
_FOLDER = flags.DEFINE_string(
    "folder", str(_common.REPOSITORY / "tests" / "programs"), "where the programs are"
)
_TURNS = flags.DEFINE_integer("turns", 5, "runs of each kind", lower_bound=1)
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
    """One run: its seconds, the losses that it prints, and what it is told at its end.

    Args:
        program: what to run.
        under: whether `tfaccel run` runs it.
        cache: the folder of plans.
    """
    words = ["-m", "tfaccel", "run"] if under else []
    paths = [str(_common.REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = os.environ | {"TFACCEL_CACHE_DIR": cache, "PYTHONPATH": os.pathsep.join(paths)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words, str(program.path)],
        capture_output=True,
        text=True,
        check=False,
        env=env,
        cwd=cache,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{program.name} failed: {done.stderr.strip()[-500:]}")
    losses = [float(word) for word in done.stdout.split()]
    return {"seconds": seconds, "losses": losses, "told": done.stderr if under else ""}


def measure(program: _Program) -> _common.Row:
    """A row of results: the three kinds take turns."""
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for _ in range(_TURNS.value):
        with tempfile.TemporaryDirectory() as cache:
            for kind in _KINDS:
                found[kind].append(run(program, kind != _KINDS[0], cache))
    return _summary(found)


def _summary(found: dict[str, list[dict[str, Any]]]) -> _common.Row:
    seconds = {kind: [one["seconds"] for one in runs] for kind, runs in found.items()}
    ratios = {
        kind: [a / b for a, b in zip(seconds[_KINDS[0]], seconds[kind], strict=True)]
        for kind in _KINDS[1:]
    }
    told = found[_KINDS[1]][-1]["told"]
    return {
        "seconds": seconds,
        "ratios": ratios,
        "loss_error": _loss_error(found),
        "has_fit": _NO_FIT not in told,
        "told": told,
        "last_losses": {kind: [one["losses"][-1] for one in runs] for kind, runs in found.items()},
    }


def _loss_error(found: dict[str, list[dict[str, Any]]]) -> float:
    """How far the last losses are from those without, at most, as a part of the first loss."""
    plain = found[_KINDS[0]]
    return max(
        abs(one["losses"][-1] - other["losses"][-1]) / abs(other["losses"][0])
        for kind in _KINDS[1:]
        for one, other in zip(found[kind], plain, strict=True)
    )


def _spread(values: list[float], digits: int, unit: str) -> str:
    """The median, with the least and the most."""
    middle = f"{statistics.median(values):.{digits}f}{unit}"
    return f"{middle} [{min(values):.{digits}f}-{max(values):.{digits}f}]"


def _cell(kind: str, key: str, digits: int, unit: str) -> Any:
    def cell(row: _common.Row) -> str:
        return _spread(row[key][kind], digits, unit) if key in row else "-"

    return cell


def _plan(row: _common.Row) -> str:
    """What `tfaccel run` said of the program."""
    if "error" in row:
        return str(row["error"])
    return "chosen by fit" if row["has_fit"] else "no `fit`: left as it is"


def _summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    gains = [statistics.median(row["ratios"][_KINDS[1]]) for row in rows if "error" not in row]
    if not gains:
        return {}, ()
    mean = statistics.geometric_mean(gains)
    said = f"Geometric mean with an empty cache: {mean:.2f}x over {len(gains)} programs"
    note = "Medians of whole processes, with the least and the most."
    return {"speedup": mean, "least": min(gains)}, (f"{said}; the least {min(gains):.2f}x. {note}",)


_COLUMNS = (
    _common.Column("program", lambda row: row["model"], is_number=False),
    *(_common.Column(f"{kind}, s", _cell(kind, "seconds", 1, "")) for kind in _KINDS),
    *(_common.Column(kind, _cell(kind, "ratios", 2, "x")) for kind in _KINDS[1:]),
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
    programs = chosen(pathlib.Path(_FOLDER.value), _PROGRAMS.value)
    _common.measure_each(results, programs, measure, _summarize)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main)
