"""A fault at every point of predictions, loops, `tfaccel run` and the profiler: stock's result."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early
from fake_engine import FakeEngine
from fault_grid import LAST_LINES
from fault_points import Recorder, failing, name_of
from fault_trainings import make_model

import tfaccel
from tfaccel.inference import predicting
from tfaccel.launch import every_fit
from tfaccel.launch.start import Options, Watch
from tfaccel.loops import accelerated_step
from tfaccel.profiling import growth
from tfaccel.profiling.meter import Meter
from tfaccel.training import phases

pytestmark = pytest.mark.usefixtures("unoptimised")

X = np.random.default_rng(0).normal(size=(12, 3)).astype("float32")
Run = Callable[[], list[np.ndarray]]
PREDICTION = (
    ("inference.", "compat.patching"),
    (
        "AcceleratedModel.predict",
        "AcceleratedModel._predict",
        "AcceleratedModel._run",
        "AcceleratedModel._abandon",
        "SharedContext.__exit__",
    ),
)
HOOKS = [name for name in vars(tfaccel.ProfilerCallback) if name.startswith("on_")]


@dataclasses.dataclass(frozen=True)
class Place:
    """Where faults are put.

    Attributes:
        prepare: makes what runs there, once for each fault.
        stock: what it gives without tfaccel.
        folders: whose functions are made to fail; others run in fits, too.
        last_lines: functions above which nothing of tfaccel's stands.
    """

    prepare: Callable[[], Run]
    stock: Run
    folders: tuple[str, ...]
    last_lines: tuple[str, ...] = ()


def state(model) -> list[np.ndarray]:
    return [v.numpy() for v in [*model.variables, *model.optimizer.variables]]


def predicted(plan) -> Run:
    fast = tfaccel.accelerate(make_model(), X[:4], plan, verbose=0, cache_dir=False)
    return lambda: [fast.predict(X, batch_size=5, verbose=0), fast.predict(X, 5, 0, 2)]


def stock_predictions() -> list[np.ndarray]:
    model = make_model()
    return [model.predict(X, batch_size=5, verbose=0), model.predict(X, 5, 0, 2)]


def loop(accelerated: bool) -> Run:
    model = make_model()
    model.optimizer.build(model.trainable_variables)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - x[:, :1]) ** 2)
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, weights), weights)
        return loss

    made = step
    if accelerated:
        made = tfaccel.accelerate_step(
            step, ["same"], model=model, optimizer=model.optimizer, verbose=0
        )

    def run():
        losses = [made(X[start : start + 4]).numpy() for start in (0, 4, 8, 0, 4)]
        if accelerated:
            made.finish()
        return [*losses, *state(model)]

    return run


def fit(around=contextlib.nullcontext, callback=None) -> Run:
    model = built_early(make_model())

    def run():
        with around():
            model.fit(
                X, X[:, :1], 4, 2, 0, shuffle=False, callbacks=[callback] if callback else None
            )
        return state(model)

    return run


def under_run() -> contextlib.AbstractContextManager[None]:
    """As `tfaccel run` does it, in this process."""

    @contextlib.contextmanager
    def everywhere():
        watch = Watch(Options(tuning="off"), {})
        watch.begin(keras)
        with watch.patches:
            yield
        watch.end()

    return everywhere()


PLACES = {
    "a prediction": Place(lambda: predicted(["same"]), stock_predictions, *PREDICTION),
    "an engine": Place(lambda: predicted([FakeEngine()]), stock_predictions, *PREDICTION),
    "a loop": Place(
        lambda: loop(True),
        lambda: loop(False)(),
        ("loops.", "steps.looped", "training."),
        (
            *("AcceleratedStep.__call__", "AcceleratedStep.finish"),
            *("Stepper.__call__", "Stepper.finish"),
            *("LoopSession.__call__", "LoopSession._made_step", "Course.own_work"),
        ),
    ),
    "tfaccel run": Place(
        lambda: fit(under_run),
        lambda: fit()(),
        ("launch.",),
        (
            *("every_fit.<locals>.fit", "_guarded", "Options.__init__"),
            *("Watch.__init__", "Watch.begin", "Watch.end"),
        ),
    ),
    "the profiler": Place(
        lambda: fit(callback=tfaccel.ProfilerCallback(verbose=0)),
        lambda: fit()(),
        ("profiling.", "callbacks.profiler"),
        ("ProfilerCallback._own_work", *(f"ProfilerCallback.{name}" for name in HOOKS)),
    ),
}


def problems_at(place: Place, code, expected) -> list[str]:
    run = place.prepare()
    with warnings.catch_warnings(record=True) as caught, failing(code, RuntimeError("a fault")):
        warnings.simplefilter("always")
        try:
            found = run()
        except Exception as error:
            return [f"raised {error!r}"]
    told = [w for w in caught if str(w.message).startswith("tfaccel")]
    same = all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))
    return ([] if same else ["another result"]) + ([] if len(told) < 2 else ["warns twice"])


@pytest.mark.slow
@pytest.mark.parametrize("name", PLACES)
def test_a_fault_at_every_point(name, monkeypatch):
    monkeypatch.setattr(phases, "RAISES", False)
    place = PLACES[name]
    expected = place.stock()
    place.prepare()()
    run, recorder = place.prepare(), Recorder()
    with recorder:
        run()
    wrong, tried = {}, 0
    for code in recorder.calls:
        point = name_of(code)
        if not point.startswith(place.folders) or point.endswith(place.last_lines):
            continue
        if code in LAST_LINES:
            continue
        tried += 1
        problems = problems_at(place, code, expected)
        print(tried, name, name_of(code), problems or "ok", flush=True)
        if problems:
            wrong[name_of(code)] = problems
    assert tried and not wrong


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("a prediction", predicting._rows),
        ("a loop", accelerated_step._ineligibility),
        ("tfaccel run", every_fit.parted),
        ("the profiler", growth.read),
        ("the profiler", Meter._measured),
    ],
)
def test_a_fault_beside_the_user_s_work(name, function, monkeypatch):
    monkeypatch.setattr(phases, "RAISES", False)
    place = PLACES[name]
    assert problems_at(place, function.__code__, place.stock()) == []
