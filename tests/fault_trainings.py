"""Trainings that come through every phase, quickly, for faults to be put into."""

import contextlib
import dataclasses
import functools
import gc
import pathlib
import tempfile
import time
import types
import warnings
from typing import Any
from unittest import mock

import fault_points
import keras
import numpy as np
import tensorflow as tf
from clocks import FakeClock
from early import built_early

import tfaccel
from tfaccel.compat.patching import instance_attribute
from tfaccel.core.prior import Prior
from tfaccel.measure import racing, timing
from tfaccel.training import phases

FUNCTIONS = (types.FunctionType, types.MethodType)
WINS = tfaccel.Speedup(2.0, 1.9, 2.1, 6)


@dataclasses.dataclass(frozen=True)
class Same(tfaccel.Pass):
    """Computes what the original step does, bit for bit, in a step of its own."""

    name = "same"

    def unsupported(self, workload):
        return None

    def prior(self, workload):
        return Prior(gain=2.0)

    def applied(self, context):
        # A layer's call is patched, as passes do, by itself.
        layer = context.workload.layers[-1]
        return instance_attribute(layer, "call", layer.call)


@dataclasses.dataclass(frozen=True)
class Alike(Same):
    """Another one."""

    name = "alike"


def make_model():
    keras.utils.set_random_seed(4)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    return model


def data(batches, known=True):
    x = np.random.default_rng(0).normal(size=(4 * batches, 3)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices((x, x[:, :1])).batch(4)
    return dataset if known else dataset.filter(lambda x, y: True)


@dataclasses.dataclass
class Trained:
    """What a training has left.

    Attributes:
        state: all variables of the model and of its optimizer.
        history: Keras's.
        warnings: what was said on the way.
        error: what `fit` raised.
        left: marks of tfaccel on the model, and files that nobody will read.
        weights: those of the variables that metrics don't have.
        steps_made: calls of the train function that were over.
    """

    state: list[np.ndarray]
    history: dict[str, list[float]]
    warnings: list[Any] = dataclasses.field(default_factory=list)
    error: BaseException | None = None
    left: list[str] = dataclasses.field(default_factory=list)
    path: list[str] = dataclasses.field(default_factory=list)
    plan: str = ""
    seconds: float = 0.0
    weights: list[np.ndarray] = dataclasses.field(default_factory=list)
    steps_made: int = 0


def values_of(model: keras.Model) -> list[np.ndarray]:
    """What a training is about: without metrics, which epochs and validations set back."""
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


@contextlib.contextmanager
def as_measured():
    """Plans win that take as long as the original step, and nothing is an error but what is."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(timing, "speedup", lambda *_: WINS))
        stack.enter_context(mock.patch.object(racing, "CLEARLY_SLOWER", float("inf")))
        stack.enter_context(mock.patch.object(phases, "RAISES", False))
        yield


def left_on(model: keras.Model, folder: pathlib.Path) -> list[str]:
    """What of tfaccel's is still on the model or in the cache's folder, beside plans."""
    left = [f"file {path.name}" for path in folder.rglob("*") if path.suffix not in ("", ".json")]
    for thing in (model, *model.layers, model.optimizer):
        for key, value in vars(thing).items():
            kind = value if isinstance(value, FUNCTIONS) else type(value)
            module = getattr(kind, "__module__", "") or ""
            if module.startswith("tfaccel") or key == "call":
                left.append(f"{type(thing).__name__}.{key}")
    return left


@dataclasses.dataclass(frozen=True)
class Training:
    """How a training is begun: with which plan, settings, data and callbacks."""

    path: str
    plan: Any = "auto"
    batches: int = 7
    epochs: int = 2
    known: bool = True
    step: float = 0.1
    runs: int = 1
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    validates: bool = True

    def arguments(self) -> dict[str, Any]:
        given: dict[str, Any] = {"x": data(self.batches, self.known), "epochs": self.epochs}
        if self.validates:
            given["validation_data"] = data(2)
        return given | {"verbose": 0, "shuffle": False}

    def run(self, *, stock: bool = False, inside=contextlib.nullcontext) -> Trained:
        """Trains; a fault may be put into the last of its runs by `inside`."""
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
            folder = pathlib.Path(name)
            caught = stack.enter_context(warnings.catch_warnings(record=True))
            warnings.simplefilter("always")
            stack.enter_context(as_measured())
            error = None
            for index in range(1 if stock else self.runs):
                model = make_model()
                caught.clear()
                accel = None if stock else self.callback(folder)
                if stock:
                    built_early(model)
                last = index == self.runs - 1
                with inside() if last and not stock else contextlib.nullcontext():
                    try:
                        model.fit(**self.arguments(), callbacks=[accel] if accel else [])
                    except BaseException as raised:
                        error = raised
            if error is not None and not isinstance(error, Exception):
                # As where somebody catches an interruption: the frames of the fit are gone.
                error.__traceback__ = error.__context__ = None
                gc.collect()
            trained = Trained(
                [v.numpy() for v in [*model.variables, *model.optimizer.variables]],
                dict(model.history.history),
                [w for w in caught if str(w.message).startswith("tfaccel")],
                error,
                left_on(model, folder),
                weights=values_of(model),
            )
            if accel is not None and accel.session is not None:
                trained.steps_made = accel.session.steps_made
                trained.path = [phase.name for phase in accel.session.path]
                trained.plan = str(accel.plan)
        trained.seconds = time.perf_counter() - begun
        return trained

    def callback(self, folder) -> tfaccel.AccelCallback:
        settings = {
            "includes": ["same", "alike"],
            "tuning_share": None,
            "max_tuning_seconds": 1e6,
            "cache_dir": folder,
        } | self.settings
        clock = FakeClock(step=self.step)
        return tfaccel.AccelCallback(self.plan, verbose=0, clock=clock, **settings)


TRAININGS = {
    "given": Training("OBSERVE RUN", plan=["same"]),
    "trials": Training("OBSERVE PREDICT TRIALS RUN", settings={"includes": ["same"]}),
    "cached": Training(
        "OBSERVE PREDICT CHECK RUN", batches=40, epochs=1, runs=2, settings={"includes": ["same"]}
    ),
    "raced": Training(
        "OBSERVE PREDICT CHECK RACE PREDICT RUN",
        batches=40,
        validates=False,
        settings={"tuning_share": 1.0},
    ),
    "awaited": Training(
        "OBSERVE PREDICT AWAIT_LENGTH PREDICT",
        known=False,
        epochs=3,
        step=10.0,
        settings={"tuning_share": 1.0},
        validates=False,
    ),
    "too_short": Training("OBSERVE STAY", batches=2, epochs=1),
}


@functools.cache
def stock(name: str) -> Trained:
    """The same training without tfaccel."""
    return TRAININGS[name].run(stock=True)


class _Noted(keras.callbacks.Callback):
    """The values after each step, by the count of steps."""

    def __init__(self, model):
        super().__init__()
        self.values = {0: values_of(model)}

    def on_train_batch_end(self, batch, logs=None):
        self.values[int(self.model.optimizer.iterations)] = values_of(self.model)


@functools.cache
def stock_steps(name: str) -> dict[int, list[np.ndarray]]:
    """What the same training without tfaccel has after each of its steps."""
    model = built_early(make_model())
    noted = _Noted(model)
    model.fit(**TRAININGS[name].arguments(), callbacks=[noted])
    return noted.values


@functools.cache
def recorded(name: str):
    """The training without a fault, and how often each function of tfaccel was entered."""
    TRAININGS[name].run()  # what is made once in a process is made
    recorder = fault_points.Recorder()
    return TRAININGS[name].run(inside=lambda: recorder), recorder.calls


def problems_with(name, code, nth=1, error=None, is_told=True) -> list[str]:
    """What is wrong after a fault in a training; nothing should be."""
    error = RuntimeError("a fault that a test has made") if error is None else error
    happened = []

    @contextlib.contextmanager
    def inside():
        with fault_points.failing(code, error, nth) as raised:
            yield
            happened.extend(raised)

    trained, other = TRAININGS[name].run(inside=inside), stock(name)
    # It may be raised again, and would keep all frames, and what they hold, of every time.
    error.__traceback__ = error.__context__ = None
    found = [f"left {left}" for left in trained.left]
    if not happened:
        return [*found, "it did not happen"]
    if isinstance(error, Exception):
        if trained.error is not None:
            return [*found, f"raised {trained.error!r}"]
        same = all(np.array_equal(a, b) for a, b in zip(trained.state, other.state, strict=True))
        found += [] if same else ["other weights"]
        found += [] if trained.history == other.history else ["another History"]
        if len(trained.warnings) > 1:
            found.append(f"warns of {[str(w.message)[:80] for w in trained.warnings]}")
        if is_told and not trained.warnings:
            found.append("silent")
    else:
        found += wrong_when_interrupted(trained, error, stock_steps(name))
    return found


def wrong_when_interrupted(trained, error, steps) -> list[str]:
    """What is wrong after an interruption: the values are those after one of stock's steps.

    That is the last that was over, or the one that was interrupted, as TensorFlow ends what it
    has begun.
    """
    if trained.error is not error:
        return [f"ended with {trained.error!r}"]
    matching = [
        count
        for count, values in steps.items()
        # Before its first step an optimizer may have no slots yet.
        if all(np.array_equal(a, b) for a, b in zip(trained.weights, values, strict=False))
    ]
    if not matching:
        return ["values of no step of the original"]
    late = {count - trained.steps_made for count in matching}
    return [] if late & {0, 1} else [f"the values are those {late} steps later"]
