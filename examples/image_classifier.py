"""Trains an image classifier with tfaccel, and shows what that changed.

Without arguments it trains a small network on scikit-learn's digits twice, by stock
Keras and with `tfaccel.AccelCallback`, and compares the two. That takes a minute or
two:

    pip install 'tfaccel[examples]'
    python examples/image_classifier.py

On your own images (an .npz file with x_train, y_train, x_test, y_test):

    python examples/image_classifier.py --data_file images.npz --model resnet --epochs 20

With measurements of every step, and a page of plots made of them:

    python examples/image_classifier.py --profile_dir run && tfaccel report run
"""

import dataclasses
import math
import pathlib
import statistics
import sys
import time

import _datasets
import _networks
import keras
from absl import app, flags
from rich.console import Console
from rich.table import Table

import tfaccel

_MODEL = flags.DEFINE_enum("model", "cnn", ["cnn", "resnet"], "the network")
_DEPTH = flags.DEFINE_integer("depth", 8, "layers of the ResNet: 8, 14, 20, 26, ...")
_DATASET = flags.DEFINE_enum(
    "dataset", "digits", sorted(_datasets.SOURCES), "digits needs no download, the others do"
)
_DATA_FILE = flags.DEFINE_string(
    "data_file", None, "an .npz file with x_train, y_train, x_test, y_test, in place of --dataset"
)
_IMAGE_SIZE = flags.DEFINE_integer(
    "image_size",
    None,
    "the side that images are resized to. By default 24 for the digits, whose 8x8 pixels are too "
    "little work to show anything, and their own size for the rest",
    lower_bound=_datasets.MIN_IMAGE_SIZE,
)
_EPOCHS = flags.DEFINE_integer(
    "epochs",
    None,
    "epochs. By default 20, and for the digits as many as take stock Keras about 25 seconds here",
    lower_bound=1,
)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "images in a batch", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Adam's learning rate")
_SEED = flags.DEFINE_integer("seed", 0, "decides weights, order and validation data", lower_bound=0)
_PLAN = flags.DEFINE_string(
    "plan", "auto", "auto, baseline, names of passes with commas, or the path of a saved plan"
)
_MAX_TUNING_SECONDS = flags.DEFINE_float(
    "max_tuning_seconds", 120.0, "the most that tuning may take", lower_bound=0.0
)
_TUNING_SHARE = flags.DEFINE_float(
    "tuning_share",
    None,
    "the most of the training time that tuning may take. By default 0.05, as AccelCallback has "
    "it, and 0.4 for the digits, whose training is over before 0.05 of it could buy anything",
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
    "compare", None, "train by stock Keras first, and compare. By default only for the digits"
)

# The demonstration: long enough for tuning to pay where there is something to win,
# over soon enough for someone who only wants to look.
_DEMO_SECONDS = 25.0
_DEMO_EPOCHS = (10, 200)
_USUAL_EPOCHS = 20


def _pass_names(plan: str) -> list[str] | None:
    """The names of passes that the flag lists; None where it is something else."""
    known = {item.name for item in tfaccel.passes.PASSES}
    names = plan.split(",")
    return names if known.issuperset(names) else None


flags.register_validator(
    _DEPTH, lambda depth: depth >= 8 and depth % 6 == 2, "must be 6n + 2: 8, 14, 20, 26, ..."
)
flags.register_validator(_LEARNING_RATE, lambda rate: 0 < rate < math.inf, "must be positive")
flags.register_validator(
    _PLAN,
    lambda plan: plan in ("auto", "baseline") or _pass_names(plan) or pathlib.Path(plan).is_file(),
    'must be "auto", "baseline", names of passes, or the path of a saved plan that exists',
)
flags.register_validator(
    _DATA_FILE, lambda path: path is None or pathlib.Path(path).is_file(), "there is no such file"
)


def build_model(images: _datasets.Images, seed: int) -> keras.Model:
    """The network that the flags ask for, compiled; one seed gives one model."""
    keras.utils.set_random_seed(seed)
    if _MODEL.value == "cnn":
        model = _networks.cnn(images.image_shape, images.classes)
    else:
        model = _networks.resnet(images.image_shape, images.classes, _DEPTH.value)
    model.compile(
        optimizer=keras.optimizers.Adam(_LEARNING_RATE.value),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


class EpochClock(keras.callbacks.Callback):
    """Times each epoch's training steps; validation is not counted."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._begin = time.perf_counter()

    def on_test_begin(self, logs=None) -> None:
        # Reading a metric waits for the steps that a GPU may still have in its queue.
        float(self.model.metrics[0].result())
        self.seconds.append(time.perf_counter() - self._begin)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training took and gave.

    Attributes:
        fit_seconds: all of `model.fit`, with compiling, tuning and validation.
        step_seconds: a step's median over the epochs after the first; None with one epoch.
        test_accuracy: on images that were not trained on.
        steps: how many steps were trained.
    """

    fit_seconds: float
    step_seconds: float | None
    test_accuracy: float
    steps: int


def steps_in_epoch(images: _datasets.Images) -> int:
    """Batches in the training data, the last and smaller one included."""
    return math.ceil(len(images.train[0]) / _BATCH_SIZE.value)


def train(
    images: _datasets.Images,
    seed: int,
    epochs: int,
    accelerator: tfaccel.AccelCallback | None = None,
    profiler: tfaccel.ProfilerCallback | None = None,
) -> Run:
    """Trains the flags' model to the end; the callbacks are all that tfaccel asks for."""
    model = build_model(images, seed)
    clock = EpochClock()
    begin = time.perf_counter()
    model.fit(
        *images.train,
        batch_size=_BATCH_SIZE.value,
        epochs=epochs,
        validation_data=images.validation,
        callbacks=[callback for callback in (clock, accelerator, profiler) if callback],
        verbose=0,
    )
    fit_seconds = time.perf_counter() - begin
    accuracy = model.evaluate(*images.test, verbose=0, return_dict=True)["accuracy"]
    steps = steps_in_epoch(images)
    later = [seconds / steps for seconds in clock.seconds[1:]]
    step_seconds = statistics.median(later) if later else None
    return Run(fit_seconds, step_seconds, accuracy, steps * epochs)


def warm_up(images: _datasets.Images) -> float:
    """Trains a model on a few batches, throws it away, and gives the time of a step.

    What a process does once (starting threads, loading libraries) would otherwise
    be charged to whichever training comes first.
    """
    few = 8 * _BATCH_SIZE.value
    cut = {
        part: tuple(array[:few] for array in getattr(images, part))
        for part in ("train", "validation", "test")
    }
    run = train(dataclasses.replace(images, **cut), seed=0, epochs=3)
    return run.step_seconds or 0.0


def choose_epochs(images: _datasets.Images, step_seconds: float) -> int:
    """`--epochs`, or the default that suits the dataset.

    Args:
        images: the data.
        step_seconds: what `warm_up` found.
    """
    if _EPOCHS.value is not None or not is_demo():
        return _EPOCHS.value or _USUAL_EPOCHS
    fewest, most = _DEMO_EPOCHS
    return min(max(round(_DEMO_SECONDS / (steps_in_epoch(images) * step_seconds)), fewest), most)


def is_demo() -> bool:
    """Whether this is the demonstration: a training of seconds on the digits."""
    return _DATASET.value == "digits" and _DATA_FILE.value is None


def described(epochs: int) -> str:
    """The model and its training, in words."""
    model = f"resnet{_DEPTH.value}" if _MODEL.value == "resnet" else _MODEL.value
    return f"{model}, {epochs} epochs in batches of {_BATCH_SIZE.value}"


def load_images() -> _datasets.Images:
    """The data that the flags ask for.

    Raises:
        _datasets.DatasetError: it can't be had or used.
    """
    size = 24 if _IMAGE_SIZE.value is None and is_demo() else _IMAGE_SIZE.value
    if _DATA_FILE.value is None:
        return _datasets.prepare(
            _DATASET.value, _datasets.SOURCES[_DATASET.value](), size, _SEED.value
        )
    path = pathlib.Path(_DATA_FILE.value)
    return _datasets.prepare(path.stem, _datasets.read_file(path), size, _SEED.value)


def tuning_share() -> float:
    """`--tuning_share`, or the default that suits the dataset."""
    if _TUNING_SHARE.value is not None:
        return _TUNING_SHARE.value
    return 0.4 if is_demo() else 0.05


def make_accelerator(**keywords) -> tfaccel.AccelCallback:
    """The callback that the flags ask for.

    Raises:
        ValueError: the plan's file holds no plan.
    """
    return tfaccel.AccelCallback(
        _pass_names(_PLAN.value) or _PLAN.value,
        tuning_share=tuning_share(),
        max_tuning_seconds=_MAX_TUNING_SECONDS.value,
        **keywords,
    )


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:.1f}"


def _ratio(stock: float | None, accelerated: float | None) -> str:
    return f"{stock / accelerated:.2f}x" if stock and accelerated else "-"


def comparison(
    stock: Run, accelerated: Run, tuning_seconds: float, images: _datasets.Images
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
    # How many images, so that a difference of three of them is not taken for a finding.
    label = f"test accuracy ({len(images.test[0])} images)"
    table.add_row(label, *(f"{run.test_accuracy:.4f}" for run in runs), "")
    return table


def _meaning(accelerator: tfaccel.AccelCallback, run: Run) -> str:
    """What that means, for someone who sees it for the first time."""
    report = accelerator.report
    if report is None:
        return f"This training ran under the plan that was asked for: {accelerator.plan}."
    if accelerator.plan.is_baseline:
        return (
            "The training stayed as Keras makes it, so any difference in time is the machine's. "
            "tfaccel changes a step only where it has measured that this pays, and measures only "
            "where the training is long enough to pay for that. More --epochs, a larger "
            "--tuning_share or a larger model give it more "
            "to win."
        )
    paid = report.break_even_steps
    if paid is None or paid <= run.steps:
        return f"This training had {run.steps} steps."
    return (
        f"This training had {run.steps} steps, too few for what tuning cost: from {paid} steps on "
        "it pays. --tuning_share bounds that cost."
    )


def main(argv: list[str]) -> None:
    """Trains as the flags say and prints what came of it."""
    if len(argv) > 1:
        sys.exit(f"There are flags only, no other arguments. Received: {' '.join(argv[1:])}")
    if _DATA_FILE.value is not None and flags.FLAGS["dataset"].present:
        sys.exit("--dataset and --data_file exclude each other: give one of them.")
    try:
        images = load_images()
        compare = is_demo() if _COMPARE.value is None else _COMPARE.value
        # A comparison has to include what tuning costs, so it takes nothing from the cache.
        accelerator = make_accelerator(cache_dir=False if compare else None)
    except (ValueError, OSError) as error:
        sys.exit(f"{error}")

    console = Console()
    epochs = choose_epochs(images, warm_up(images) if compare or is_demo() else 0.0)
    console.print(f"{images}. Model: {described(epochs)}.")
    if is_demo() and _TUNING_SHARE.value is None and _PLAN.value == "auto":
        console.print(
            f"Tuning may take {tuning_share():.0%} of the time here, as this training lasts only "
            "seconds. The default is 5 %, which is plenty for a training of many minutes."
        )
    stock = None
    if compare:
        console.print("Training by stock Keras ...")
        stock = train(images, _SEED.value, epochs)
        console.print(f"Test accuracy: {stock.test_accuracy:.4f}")
    console.print("Training with tfaccel.AccelCallback ...")
    profiler = None
    if _PROFILE_DIR.value is not None:
        profiler = tfaccel.ProfilerCallback(_PROFILE_DIR.value, profile_batch=_PROFILE_BATCH.value)
    accelerated = train(images, _SEED.value, epochs, accelerator, profiler)
    console.print(f"Test accuracy: {accelerated.test_accuracy:.4f}")
    if stock is not None:
        spent = accelerator.report.tuning_seconds if accelerator.report else 0.0
        console.print(comparison(stock, accelerated, spent, images))
    console.print(_meaning(accelerator, accelerated))
    if profiler is not None:
        console.print(f"For a page with plots: tfaccel report {_PROFILE_DIR.value}")


if __name__ == "__main__":
    app.run(main)
