"""Steps of models, recomputed and not."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.passes.recompute.recompute import Recompute
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.snapshot import build_all

STEPS = 2


def batches(x, y, size=4):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(size).repeat()


def normal(*shape):
    return np.random.default_rng(7).normal(size=shape).astype("float32")


def trained(make, plan, data):
    """Logs of a few steps under a plan, and every variable after them."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(5)
    model = make()
    if not model.built:
        model(next(iter(data))[0])
    # Else each step would be traced once more, as the trace would make them.
    build_all(model, data.element_spec)
    if model.optimizer and not model.optimizer.built:
        model.optimizer.build(model.trainable_variables)
    step, iterator = build_step(Workload(model), plan), iter(data)
    logs = [{k: float(v) for k, v in step(iterator).items()} for _ in range(STEPS)]
    optimizer = model.optimizer.variables if model.optimizer else []
    named = [*model.variables, *model.metrics_variables, *optimizer]
    return logs, [(v.path, v.numpy()) for v in named], model


def assert_same(make, data, plan=None, rtol=2e-5, base=None):
    """The step under the plan and that without `recompute` agree; returns the model."""
    plan = plan or Plan((Recompute(),))
    expected = trained(make, base or plan.without("recompute"), data)
    actual = trained(make, plan, data)
    for a, e in zip(actual[0], expected[0], strict=True):
        assert a == pytest.approx(e, rel=rtol)
    for (path, a), (_, e) in zip(actual[1], expected[1], strict=True):
        if e.dtype.kind in "iub":
            np.testing.assert_array_equal(a, e, path)
        else:
            np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * 0.1, err_msg=path)
    return actual[2]


def compiled(model, optimizer=None, **kwargs):
    model.compile(optimizer or keras.optimizers.SGD(0.1), **{"loss": "mse", **kwargs})
    return model


ROWS = (normal(16, 5), normal(16, 2))
TOKENS = np.random.default_rng(2).integers(0, 11, (16, 7))
TOKENS[:, 5:] = 0
