"""The examples' common flags, and what they do with a task: train, compare, explain."""

import json
import math
import pathlib
import sys

import _picture
import _training
import keras
from absl import flags
from rich.console import Console
from rich.table import Table

import tfaccel

_EPOCHS = flags.DEFINE_integer(
    "epochs",
    None,
    "epochs. By default 20, and for the demonstration as many as take stock Keras some 20 seconds",
    lower_bound=1,
)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "samples in a batch", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Adam's learning rate")
SEED = flags.DEFINE_integer("seed", 0, "decides weights, order and validation data", lower_bound=0)
_PLAN = flags.DEFINE_string(
    "plan", "auto", "auto, baseline, names of passes with commas, or the path of a saved plan"
)
_MAX_TUNING_SECONDS = flags.DEFINE_float(
    "max_tuning_seconds", 120.0, "the most that tuning may take", lower_bound=0.0
)
_TUNING_SHARE = flags.DEFINE_float(
    "tuning_share",
    None,
    "the most of the training time that tuning may take. By default 0.3, as AccelCallback has "
    "it, and 0.4 for the demonstration, which takes seconds",
    lower_bound=0.0,
    upper_bound=1.0,
)
_PROFILE_DIR = flags.DEFINE_string(
    "profile_dir",
    None,
    "where ProfilerCallback writes what it measures in the accelerated training",
)
_PROFILE_BATCH = flags.DEFINE_integer(
    "profile_batch", 0, "the batch to trace op by op, with --profile_dir; 0 for none", lower_bound=0
)
_COMPARE = flags.DEFINE_bool(
    "compare",
    None,
    "train by stock Keras first, and compare. By default only for the demonstration",
)

_SUMMARY_FILE = flags.DEFINE_string(
    "summary_file", None, "where both trainings' times and accuracies are written, as JSON"
)

_PICTURE = flags.DEFINE_string(
    "picture_file",
    None,
    "where a picture of the trainings is written; empty for none. By default the data's name.png",
)

_USUAL_EPOCHS = 20
_USUAL_TUNING_SHARE, _DEMONSTRATION_TUNING_SHARE = 0.3, 0.4


def _pass_names(plan: str) -> list[str] | None:
    """The names of passes that the flag lists; None where it is something else."""
    known = {item.name for item in tfaccel.passes.PASSES}
    names = plan.split(",")
    return names if known.issuperset(names) else None


flags.register_validator(_LEARNING_RATE, lambda rate: 0 < rate < math.inf, "must be positive")
flags.register_validator(
    _PLAN,
    lambda plan: plan in ("auto", "baseline") or _pass_names(plan) or pathlib.Path(plan).is_file(),
    'must be "auto", "baseline", names of passes, or the path of a saved plan that exists',
)


def refuse_words(argv: list[str]) -> None:
    """Exits where the command line holds more than flags."""
    if len(argv) > 1:
        sys.exit(f"There are flags only, no other arguments. Received: {' '.join(argv[1:])}")


def compiled(model: keras.Model) -> keras.Model:
    """The model, compiled for classes as the flags say."""
    model.compile(
        optimizer=keras.optimizers.Adam(_LEARNING_RATE.value),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def tuning_share(task: _training.Task) -> float:
    """`--tuning_share`, or the default that suits the task."""
    if _TUNING_SHARE.value is not None:
        return _TUNING_SHARE.value
    return _DEMONSTRATION_TUNING_SHARE if task.demonstration else _USUAL_TUNING_SHARE


def make_accelerator(task: _training.Task, **keywords) -> tfaccel.AccelCallback:
    """The callback that the flags ask for.

    Raises:
        ValueError: the plan's file holds no plan.
    """
    return tfaccel.AccelCallback(
        _pass_names(_PLAN.value) or _PLAN.value,
        tuning_share=tuning_share(task),
        max_tuning_seconds=_MAX_TUNING_SECONDS.value,
        **keywords,
    )


def make_profiler() -> tfaccel.ProfilerCallback | None:
    """The callback that the flags ask for, or None."""
    if _PROFILE_DIR.value is None:
        return None
    return tfaccel.ProfilerCallback(_PROFILE_DIR.value, profile_batch=_PROFILE_BATCH.value)


def choose_epochs(task: _training.Task, step_seconds: float) -> int:
    """`--epochs`, or the default that suits the task.

    Args:
        task: what is trained.
        step_seconds: what `_training.warm_up` found; only a demonstration uses it.
    """
    if _EPOCHS.value is not None or task.demonstration is None:
        return _EPOCHS.value or _USUAL_EPOCHS
    return _training.demonstration_epochs(task, step_seconds)


def described(task: _training.Task, epochs: int) -> str:
    """The model and its training, in words."""
    return f"{task.model_name}, {epochs} epochs in batches of {task.batch_size}"


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def _ratio(stock: float | None, accelerated: float | None) -> str:
    return f"{stock / accelerated:.2f}x" if stock and accelerated else "-"


def comparison(
    task: _training.Task, stock: _training.Run, accelerated: _training.Run, tuning_seconds: float
) -> Table:
    """Both trainings side by side."""
    table = Table(title="The same training, from the same seed, twice")
    for column in ("", "stock Keras", "with tfaccel", "speedup"):
        table.add_column(column, justify="left" if not column else "right")
    runs = (stock, accelerated)
    whole = [f"{run.fit_seconds:.1f}" for run in runs]
    table.add_row("fit, seconds (all of it)", *whole, _ratio(*(run.fit_seconds for run in runs)))
    table.add_row("  of which tuning", "-", f"{tuning_seconds:.1f}", "")
    steps = [_milliseconds(run.step_seconds) for run in runs]
    table.add_row("step, ms (median)", *steps, _ratio(*(run.step_seconds for run in runs)))
    # How many samples, so that a difference of three of them is not taken for a finding.
    label = f"test accuracy ({task.test_samples} {task.unit})"
    table.add_row(label, *(f"{run.test_accuracy:.4f}" for run in runs), "")
    return table


def _meaning(accelerator: tfaccel.AccelCallback, run: _training.Run) -> str:
    """What that means, for someone who sees it for the first time."""
    report = accelerator.report
    if report is None:
        return f"This training ran under the plan that was asked for: {accelerator.plan}."
    if accelerator.plan.is_baseline:
        return (
            "The training stayed as Keras makes it, so any difference in time is the machine's. "
            "tfaccel changes a step only where it has measured that this pays, and measures only "
            "where the training is long enough to pay for that. More --epochs, a larger "
            "--tuning_share or a larger model give it more to win."
        )
    paid = report.break_even_steps
    if paid is None or paid <= run.steps:
        return f"This training had {run.steps} steps."
    return (
        f"This training had {run.steps} steps, too few for what tuning cost: from {paid} steps on "
        "it pays. --tuning_share bounds that cost."
    )


def _write_summary(stock: _training.Run, accelerated: _training.Run, plan: str) -> None:
    summary = {
        name: {"fit_seconds": run.fit_seconds, "test_accuracy": run.test_accuracy}
        for name, run in (("stock", stock), ("accelerated", accelerated))
    }
    text = json.dumps({**summary, "plan": plan})
    pathlib.Path(_SUMMARY_FILE.value).write_text(text, encoding="utf-8")


def run(
    task: _training.Task,
    console: Console,
    profiler: tfaccel.ProfilerCallback | None,
) -> _training.Run:
    """Trains the task as the flags say, prints what came of it, and gives the last training.

    Exits where the plan's file holds no plan.

    Args:
        task: what to learn.
        console: where to print.
        profiler: measures the accelerated training, if any does.
    """
    is_demonstration = task.demonstration is not None
    compare = is_demonstration if _COMPARE.value is None else _COMPARE.value
    # A comparison has to include what tuning costs, so it takes nothing from the cache.
    try:
        accelerator = make_accelerator(task, cache_dir=False if compare else None)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")
    warmed = _training.warm_up(task) if compare or is_demonstration else 0.0
    epochs = choose_epochs(task, warmed)
    console.print(f"{task.title}. Model: {described(task, epochs)}.")
    if is_demonstration and _TUNING_SHARE.value is None and _PLAN.value == "auto":
        console.print(
            f"Tuning may take {tuning_share(task):.0%} of the time here, as this training lasts "
            "only seconds. The default is 30 %, which is plenty for a training of many minutes."
        )
    stock = None
    if compare:
        console.print("Training by stock Keras ...")
        stock = _training.train(task, SEED.value, epochs)
        console.print(f"Test accuracy: {stock.test_accuracy:.4f}")
    console.print("Training with tfaccel.AccelCallback ...")
    callbacks = [accelerator, profiler] if profiler else [accelerator]
    accelerated = _training.train(task, SEED.value, epochs, callbacks)
    console.print(f"Test accuracy: {accelerated.test_accuracy:.4f}")
    if stock is not None:
        spent = accelerator.report.tuning_seconds if accelerator.report else 0.0
        console.print(comparison(task, stock, accelerated, spent))
        if _SUMMARY_FILE.value is not None:
            _write_summary(stock, accelerated, str(accelerator.plan))
    console.print(_meaning(accelerator, accelerated))
    path = f"{task.name}.png" if _PICTURE.value is None else _PICTURE.value
    if path:
        runs = {"stock Keras": stock, "with tfaccel": accelerated}
        curves = {
            f"validation accuracy, {name}": run.history["val_accuracy"]
            for name, run in runs.items()
            if run
        }
        _picture.show(curves, accelerator.report, path)
    if _PROFILE_DIR.value is not None:
        console.print(f"For a page with plots: tfaccel report {_PROFILE_DIR.value}")
    return accelerated
