"""tfaccel: one line in `model.fit` makes a Keras model train as fast as the hardware allows."""

try:
    import tensorflow as _tensorflow  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "tensorflow":
        raise
    raise ModuleNotFoundError(
        "tfaccel needs TensorFlow: install it with `pip install 'tfaccel[cpu]'` "
        "or, for NVIDIA GPUs, `pip install 'tfaccel[gpu]'`.",
        name="tensorflow",
    ) from None

from tfaccel import data, ops, passes
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.autotune.tune import tune
from tfaccel.batch_size import max_batch_size
from tfaccel.callbacks import AccelCallback, ProfilerCallback
from tfaccel.core.plan import Pass, Plan, Unsupported
from tfaccel.core.workload import Workload
from tfaccel.distribute import AccelStrategy
from tfaccel.inference import AcceleratedModel, accelerate, load
from tfaccel.measure.numerics import Drift, Tolerance
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.version import __version__

__all__ = [
    "AccelCallback",
    "AccelStrategy",
    "AcceleratedModel",
    "Drift",
    "Outcome",
    "Pass",
    "Plan",
    "ProfilerCallback",
    "Report",
    "Speedup",
    "Tolerance",
    "Trial",
    "Unsupported",
    "Workload",
    "__version__",
    "accelerate",
    "data",
    "load",
    "max_batch_size",
    "ops",
    "passes",
    "tune",
]
