"""Random models: under every pass that says it serves one, and under a search, it trains as stock.

python tests/test_random_models.py 600   # so many, told as they go
"""

import dataclasses
import sys

import fault_trainings  # noqa: F401 (its passes have names that searches find)
import keras
import numpy as np
import pytest
import random_models
import tensorflow as tf
from clocks import FakeClock
from hypothesis import HealthCheck, given, settings
from random_models import build, trainings

import tfaccel
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
    own = numerics.compare(reference, probe.near())
    found = []
    for kind in PASSES:
        item = make_pass(kind.name)
        if item.unsupported(workload):
            continue
        drift = numerics.compare(reference, probe.observe(Plan((item,)), reference))
        tolerance = numerics.TOLERANCES[coarsest_dtype(Plan((item,)), workload)]
        # Keras keeps losses in float32, whatever computes them.
        tolerance = dataclasses.replace(tolerance, loss=max(tolerance.loss, 1e-6))
        if why := drift.violation(numerics.widened(tolerance, own)):
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


@pytest.mark.slow
@settings(LONG)
@given(trainings())
def test_random_models_under_every_pass_that_serves_them(drawn):
    assert not wrong_under_passes(drawn)


@pytest.mark.slow
@settings(LONG)
@given(trainings())
def test_random_models_under_a_search(drawn):
    assert not searched(drawn)


def _many(count: int) -> None:
    tried = 0

    @settings(LONG, max_examples=count)
    @given(trainings())
    def one(drawn):
        nonlocal tried
        tried += 1
        keras.utils.clear_session(free_memory=False)
        try:
            wrong = wrong_under_passes(drawn) + searched(drawn)
        except Exception as error:
            wrong = [repr(error)]
        print(tried, wrong or "ok", drawn, flush=True)

    one()


if __name__ == "__main__":
    _many(int(sys.argv[1]))
