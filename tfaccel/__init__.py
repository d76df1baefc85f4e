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
from tfaccel.callbacks import AccelCallback, ProfilerCallback
from tfaccel.inference import AcceleratedModel, accelerate
from tfaccel.memory_search import max_batch_size
from tfaccel.numerics import Drift, Tolerance
from tfaccel.plan import Pass, Plan, Refusal
from tfaccel.report import Report
from tfaccel.strategy import AccelStrategy
from tfaccel.timing import Speedup
from tfaccel.trial import Outcome, Trial
from tfaccel.tune import tune
from tfaccel.version import __version__
from tfaccel.workload import Workload

__all__ = [
    "AccelCallback",
    "AccelStrategy",
    "AcceleratedModel",
    "Drift",
    "Outcome",
    "Pass",
    "Plan",
    "ProfilerCallback",
    "Refusal",
    "Report",
    "Speedup",
    "Tolerance",
    "Trial",
    "Workload",
    "__version__",
    "accelerate",
    "data",
    "max_batch_size",
    "ops",
    "passes",
    "tune",
]
