"""What `tfaccel run` costs a program that never trains, or is too short for any plan (`fit`).

Starts `python script.py` and `tfaccel run script.py` in turns, for a script that imports nothing,
one that imports TensorFlow and one that imports Keras, and reports the median difference.

    python benchmarks/run_cost.py --runs 11
    python benchmarks/run_cost.py --runs 11 --scripts nothing,tensorflow,keras,fit
"""

import pathlib
import sys
import tempfile
from typing import Any

import _common
import _processes
from absl import app, flags

from tfaccel.measure.timing import median_interval

_RUNS = flags.DEFINE_integer("runs", 11, "pairs of runs of each script", lower_bound=1)
_SCRIPTS = flags.DEFINE_list("scripts", ["nothing", "tensorflow", "keras"], "what is imported")
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")

# What a script does, by what it imports.
_CODE = {"nothing": "print('done')\n"} | {
    name: f"import {name}\nprint('done')\n" for name in ("tensorflow", "keras")
}
# Too short for any plan. The optimizer's variables are made before, or stock would trace twice.
_CODE["fit"] = """
import keras, numpy
model = keras.Sequential([keras.Input((784,)), keras.layers.Dense(10)])
model.compile("adam", "mse")
model.optimizer.build(model.trainable_variables)
rows = numpy.ones((320, 784), "float32")
model.fit(rows, rows[:, :10], epochs=2, verbose=0)
"""
_DOES = {"fit": "makes a short"}
# Of the issue that `tfaccel run` was built to: seconds beyond TensorFlow's import.
_BOUND_SECONDS = 0.2

COLUMNS = (
    _common.Column("script imports", lambda row: row["script"], is_number=False),
    _common.Column("pair", lambda row: str(row["pair"])),
    _common.Column("python, s", lambda row: f"{row['plain_seconds']:.3f}"),
    _common.Column("tfaccel run, s", lambda row: f"{row['run_seconds']:.3f}"),
    _common.Column("difference, s", lambda row: f"{row['cost_seconds']:+.3f}"),
    _common.Column("difference, CPU s", lambda row: f"{row['cost_cpu_seconds']:+.3f}"),
)


def _file(script: str) -> str:
    """A name that is no module's, as a script finds modules beside it first."""
    return f"imports_{script}.py"


def pair(script: str, number: int, folder: str) -> dict[str, Any]:
    """One run of each kind, as a row; the order alternates."""
    sides = [[_file(script)], ["-m", "tfaccel", "run", _file(script)]]
    order = (1, 0) if number % 2 else (0, 1)
    found = {side: _processes.timed(sides[side], folder) for side in order}
    plain, run = found[0], found[1]
    return {
        "script": script,
        "pair": number,
        "plain_seconds": plain.seconds,
        "run_seconds": run.seconds,
        "cost_seconds": run.seconds - plain.seconds,
        "cost_cpu_seconds": run.cpu_seconds - plain.cpu_seconds,
    }


def summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The median cost of each script with its interval, by the clock and in CPU time."""
    numbers: dict[str, Any] = {}
    sentences = []
    for script in dict.fromkeys(row["script"] for row in rows):
        own = [row for row in rows if row["script"] == script]
        found = {
            unit: dict(
                zip(
                    ("median", "low", "high"),
                    median_interval([row[unit] for row in own]),
                    strict=True,
                )
            )
            for unit in ("cost_seconds", "cost_cpu_seconds")
        }
        numbers[script] = found
        seconds, cpu = found.values()
        sentences.append(
            f"A script that {_DOES.get(script, 'imports')} {script} takes "
            f"{1e3 * seconds['median']:+.0f} ms "
            f"[{1e3 * seconds['low']:+.0f}, {1e3 * seconds['high']:+.0f}] longer, and "
            f"{1e3 * cpu['median']:+.0f} ms of CPU time "
            f"[{1e3 * cpu['low']:+.0f}, {1e3 * cpu['high']:+.0f}] more "
            f"(medians of {len(own)} pairs, with 95 % intervals; the bound is "
            f"{1e3 * _BOUND_SECONDS:.0f} ms)."
        )
    return numbers, tuple(sentences)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    unknown = set(_SCRIPTS.value) - _CODE.keys()
    if unknown:
        sys.exit(f"--scripts must be of {', '.join(_CODE)}. Received: {', '.join(unknown)}")
    title = "What `tfaccel run` costs a program that never trains"
    results = _common.Results("run-cost", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    _processes.compile_ours()
    with tempfile.TemporaryDirectory() as folder:
        for name in _SCRIPTS.value:
            pathlib.Path(folder, _file(name)).write_text(_CODE[name], encoding="utf-8")
            pair(name, 0, folder)  # files are read from disk once, which belongs to neither side
        for number in range(1, _RUNS.value + 1):
            for name in _SCRIPTS.value:
                results.add(pair(name, number, folder), summarize)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
