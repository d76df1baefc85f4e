"""What `tfaccel run` gains on a program that is not changed: its epochs, and the whole process.

The program runs as it is and under `tfaccel run` (with an empty cache) in turns, each a process of
its own. An epoch counts from its beginning to the next one's. The epochs of the second half are
compared, in which nothing is tuned any more.

    python benchmarks/run_gain.py --turns 3
"""

import pathlib
import statistics
import tempfile
from typing import Any

import _common
import _processes
from absl import app, flags

from tfaccel.measure.timing import median_interval

_PROGRAM = flags.DEFINE_string(
    "program",
    str(_common.REPOSITORY / "benchmarks" / "long_programs" / "resnet8.py"),
    "prints the loss and the seconds of each epoch, a line each",
)
_TURNS = flags.DEFINE_integer("turns", 3, "pairs of runs", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")

# Of the issue that `tfaccel run` was built to, on a chip where TensorFlow leaves oneDNN off.
_ASKED = 1.5


def run(under: bool) -> dict[str, Any]:
    """One run: its seconds, its epochs', its last loss."""
    with tempfile.TemporaryDirectory() as cache:
        words = [*(["-m", "tfaccel", "run"] if under else []), _PROGRAM.value]
        done = _processes.timed(words, cache, {"TFACCEL_CACHE_DIR": cache})
    lines = [line.split() for line in done.out.splitlines()]
    return {
        "seconds": done.seconds,
        "epochs": [float(seconds) for _, seconds in lines],
        "loss": float(lines[-1][0]),
        "told": done.said if under else "",
    }


def pair(turn: int) -> _common.Row:
    """A run of either kind; who begins changes."""
    plain, ours = (run(False), run(True)) if turn % 2 else (run(True), run(False))[::-1]
    return {
        "pair": turn,
        "plain": plain,
        "ours": ours,
        "epochs_gain": _late(plain) / _late(ours),
        "gain": plain["seconds"] / ours["seconds"],
    }


def _late(found: dict[str, Any]) -> float:
    """Seconds of an epoch, on average over the second half: at times stock Keras waits long."""
    epochs = found["epochs"]
    return statistics.fmean(epochs[len(epochs) // 2 :])


def _summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    epochs, whole = (median_interval([row[key] for row in rows]) for key in ("epochs_gain", "gain"))
    told = [line for line in rows[-1]["ours"]["told"].splitlines() if line.startswith("tfaccel:")]
    sentence = (
        f"Epochs under `tfaccel run` are {epochs[0]:.2f}x [{epochs[1]:.2f}, {epochs[2]:.2f}] as "
        f"fast ({_ASKED}x is asked for where TensorFlow leaves oneDNN off), the whole process "
        f"{whole[0]:.2f}x [{whole[1]:.2f}, {whole[2]:.2f}]. {' '.join(told)}"
    )
    return {"epochs_gain": list(epochs), "gain": list(whole)}, (sentence,)


COLUMNS = (
    _common.Column("pair", lambda row: str(row["pair"])),
    _common.Column("epoch, s", lambda row: f"{_late(row['plain']):.2f}"),
    _common.Column("under tfaccel run, s", lambda row: f"{_late(row['ours']):.2f}"),
    _common.Column("gain", lambda row: f"{row['epochs_gain']:.2f}x"),
    _common.Column("process, s", lambda row: f"{row['plain']['seconds']:.1f}"),
    _common.Column("under it, s", lambda row: f"{row['ours']['seconds']:.1f}"),
    _common.Column("whole gain", lambda row: f"{row['gain']:.2f}x"),
    _common.Column(
        "last losses", lambda row: f"{row['plain']['loss']:.4f}, {row['ours']['loss']:.4f}"
    ),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    name = pathlib.Path(_PROGRAM.value).stem
    title = f"What `tfaccel run` gains on {name}"
    results = _common.Results(f"run-gain-{name}", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    _processes.compile_ours()
    for turn in range(1, _TURNS.value + 1):
        results.add(pair(turn), _summarize)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
