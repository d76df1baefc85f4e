"""Random models: under every pass that says it serves one, and under a search, it trains as stock.

python tests/test_random_models.py 600      # so many, told as they go
python tests/test_random_models.py 600 40   # no more than can be begun in 40 minutes
"""

import dataclasses
import sys
import time
import traceback

import fault_trainings  # noqa: F401 (its passes have names that searches find)
import keras
import numpy as np
import pytest
import random_models
import tensorflow as tf
from clocks import FakeClock
from hypothesis import HealthCheck, given, settings
from random_models import build, floatx_of, trainings

import tfaccel
from tfaccel.autotune.comparison import faithfulness
from tfaccel.autotune.comparison.faithfulness import Yardsticks
from tfaccel.autotune.comparison.step_recorder import StepRecorder
from tfaccel.autotune.trial import coarsest_dtype
from tfaccel.core.plan import Plan, make_pass
from tfaccel.core.workload import Workload
from tfaccel.measure import numerics
from tfaccel.passes import PASSES
from tfaccel.steps.snapshot import Snapshot

LONG = settings(
    max_examples=40,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)

pytestmark = pytest.mark.usefixtures("unoptimised")


def wrong_under_passes(drawn) -> list[str]:
    """Passes that serve the model, and under which a step is not the untouched one's."""
    model = build(drawn)
    data = random_models.arrays(drawn, 1)
    dataset = tf.data.Dataset.from_tensor_slices(data if drawn.weights == "sample" else data[:2])
    dataset = dataset.batch(drawn.batch)
    model.fit(dataset, verbose=0)
    workload = Workload(model, (next(iter(dataset)),), dataset.element_spec)
    probe = StepRecorder(workload, Snapshot.of(workload))
    reference = probe.observe(Plan())
    found = []
    for kind in PASSES:
        item = make_pass(kind.name)
        if item.unsupported(workload):
            continue
        candidate = probe.observe(Plan((item,)), reference)
        dtype = coarsest_dtype(Plan((item,)), workload)
        nears = (
            (probe.near(dtype), probe.near(dtype, moved=True))
            if dtype in numerics.SIXTEEN_BITS
            else (probe.near(),)
        )
        tolerance = numerics.TOLERANCES[dtype]
        if drawn.optimizer[0] == "Ftrl":  # it takes the difference of two roots that are close
            tolerance = dataclasses.replace(tolerance, update=1e-3)
        why = faithfulness.violation(reference, candidate, tolerance, Yardsticks(dtype, nears))
        if why is not None:
            found.append(f"{kind.name}: {why}")
    return found


def trained(drawn, *callbacks):
    """All variables after two epochs, and the losses."""
    model = build(drawn)
    given = random_models.feed(drawn, 5)
    history = model.fit(**given, epochs=2, shuffle=False, verbose=0, callbacks=list(callbacks))
    variables = [*model.variables, *model.optimizer.variables]
    return [v.numpy() for v in variables], history.history["loss"]


def searched(drawn) -> list[str]:
    """What a search, opened wide, changes in a training beside what the plan does: nothing."""
    search = tfaccel.AccelCallback(
        includes=["same"],
        tuning_share=None,
        max_tuning_seconds=1e6,
        cache_dir=False,
        clock=FakeClock(step=0.1),
        verbose=0,
    )
    stock, fast = trained(drawn), trained(drawn, search)
    same = all(np.array_equal(a, b, equal_nan=True) for a, b in zip(stock[0], fast[0], strict=True))
    return [] if same and np.array_equal(stock[1], fast[1], equal_nan=True) else [str(search.plan)]


def wrong_by(check, drawn) -> list[str]:
    """What a check finds wrong; nothing where Keras alone can't train the model either."""
    with floatx_of(drawn):
        try:
            return check(drawn)
        except Exception:
            why = traceback.format_exc()
        try:
            trained(drawn)
        except Exception:
            return []
        return [why]


@pytest.mark.slow
@settings(LONG)
@given(trainings())
def test_random_models_under_every_pass_that_serves_them(drawn):
    assert not wrong_by(wrong_under_passes, drawn)


@pytest.mark.slow
@settings(LONG)
@given(trainings())
def test_random_models_under_a_search(drawn):
    assert not wrong_by(searched, drawn)


def _many(count: int, minutes: float) -> None:
    """Tries models until so many were tried or the time is over, telling of each as it goes."""
    tried: list[random_models.Drawn] = []
    found, end = 0, time.monotonic() + 60 * minutes

    # The first tenth of what hypothesis draws is small, and much the same: of nine there is none.
    @settings(LONG, max_examples=9)
    @given(trainings())
    def a_few(drawn):
        nonlocal found
        if drawn in tried or len(tried) == count or time.monotonic() > end:
            return
        tried.append(drawn)
        keras.utils.clear_session(free_memory=False)
        wrong = wrong_by(wrong_under_passes, drawn)
        # A search takes nearly as long as all passes one by one.
        wrong += wrong_by(searched, drawn) if len(tried) % 2 else []
        found += bool(wrong)
        print(f"{len(tried)} tried, {found} wrong:", wrong or "ok", drawn, flush=True)

    while len(tried) < count and time.monotonic() < end:
        a_few()


if __name__ == "__main__":
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    _many(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else np.inf)
