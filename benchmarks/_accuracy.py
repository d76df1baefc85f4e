"""Whether a model trained with tfaccel ends up as good as one trained without.

An example's model is trained to the end, with several seeds, each by stock Keras and
with the callback.
"""

import pathlib
import statistics
import sys
from collections.abc import Callable
from typing import Any

import _common
import _example
import _training
import keras
from absl import flags

_SEEDS = flags.DEFINE_integer("seeds", 3, "how many seeds, from --seed upwards", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_TIMES = flags.DEFINE_bool(
    "times", True, "report times too; --notimes where the machine does other work"
)
_RESUME = flags.DEFINE_bool("resume", False, "keep what was measured and measure the rest")

COLUMNS = (
    _common.Column("seed", lambda row: str(row["seed"])),
    _common.Column("training", lambda row: row["training"], is_number=False),
    _common.Column("test accuracy", lambda row: f"{row['test_accuracy']:.4f}"),
    _common.Column("fit, s", lambda row: _seconds(row["fit_seconds"])),
    _common.Column("of which tuning, s", lambda row: _seconds(row["tuning_seconds"])),
    _common.Column("step, ms", lambda row: _common.milliseconds(row["step_seconds"])),
    _common.Column("plan", lambda row: row["plan"], is_number=False),
)
STOCK, ACCELERATED = "stock Keras", "tfaccel"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def train(task: _training.Task, seed: int, epochs: int, training: str) -> dict[str, Any]:
    """One training to the end, as a row."""
    accelerator = None
    if training == ACCELERATED:
        # No cache: each run pays for its own tuning, as a first run does.
        accelerator = _example.make_accelerator(task, cache_dir=False, verbose=0)
    run = _training.train(task, seed, epochs, [accelerator] if accelerator else [])
    report = accelerator.report if accelerator else None
    times = {
        "fit_seconds": run.fit_seconds,
        "tuning_seconds": report.tuning_seconds if report else 0.0,
        "step_seconds": run.step_seconds,
    }
    return {
        "seed": seed,
        "training": training,
        "test_accuracy": run.test_accuracy,
        **(times if _TIMES.value else dict.fromkeys(times)),
        "steps": run.steps,
        "plan": str(accelerator.plan) if accelerator else "-",
    }


def _spread(values: list[float]) -> dict[str, float | None]:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "standard_deviation": deviation}


def _said(spread: dict[str, float | None], digits: int) -> str:
    deviation = spread["standard_deviation"]
    return f"{spread['mean']:.{digits}f}" + (
        "" if deviation is None else f" (standard deviation {deviation:.{digits}f})"
    )


def summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Mean and standard deviation of accuracy and time, and the ratio of mean times."""
    numbers: dict[str, Any] = {}
    sentences = []
    for training in (STOCK, ACCELERATED):
        mine = [row for row in rows if row["training"] == training]
        if not mine:
            continue
        found = {"test_accuracy": _spread([row["test_accuracy"] for row in mine])}
        said = f"test accuracy {_said(found['test_accuracy'], 4)}"
        if all(row["fit_seconds"] is not None for row in mine):
            found["fit_seconds"] = _spread([row["fit_seconds"] for row in mine])
            said += f", fit {_said(found['fit_seconds'], 1)} s"
        numbers[training] = {"seeds": len(mine), **found}
        sentences.append(f"{training}, {len(mine)} seeds: {said}.")
    if len(numbers) == 2 and all("fit_seconds" in found for found in numbers.values()):
        stock, accelerated = (numbers[k]["fit_seconds"]["mean"] for k in (STOCK, ACCELERATED))
        numbers["fit_speedup"] = stock / accelerated
        sentences.append(f"The whole fit, tuning included: {stock / accelerated:.2f}x.")
    return numbers, tuple(sentences)


def measure(load_task: Callable[[], _training.Task]) -> None:
    """Trains what the example's flags ask for and writes the results.

    Args:
        load_task: loads the example's task; a ValueError says why that can't be had.
    """
    try:
        task = load_task()
        epochs = _example.choose_epochs(task, _training.warm_up(task))
        results = _common.Results(
            f"accuracy-{_common.slug(task.name)}-{_common.slug(task.model_name)}",
            f"Trained to the end: {_example.described(task, epochs)} on {task.name}",
            COLUMNS,
            pathlib.Path(_OUTPUT.value),
            _RESUME.value,
        )
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
    console = _common.console()
    console.print(task.title)
    measured = {(row["seed"], row["training"]) for row in results.rows}
    for number in range(_SEEDS.value):
        # The order alternates, so that neither side always has the fresher machine.
        order = (STOCK, ACCELERATED) if number % 2 == 0 else (ACCELERATED, STOCK)
        for training in order:
            if (_example.SEED.value + number, training) in measured:
                continue
            keras.backend.clear_session()
            row = train(task, _example.SEED.value + number, epochs, training)
            results.add(row, summarize)
            console.print(f"seed {row['seed']}, {training}: {row['test_accuracy']:.4f}")
    console.print(results)
    console.print(f"Written to {results.path}")
