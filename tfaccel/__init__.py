"""tfaccel: one line in `model.fit` trains a Keras model faster, or leaves it as it was.

A public name is loaded when it is first asked for: `tfaccel run` sets what TensorFlow reads as it
starts, and must have nothing import TensorFlow before that.
"""

import importlib
import importlib.util

from tfaccel.version import __version__ as __version__

TYPE_CHECKING = False  # as in `typing`, which a program under `tfaccel run` need not wait for

if TYPE_CHECKING:
    from tfaccel import data as data
    from tfaccel import ops as ops
    from tfaccel import passes as passes
    from tfaccel.autotune.report import Report as Report
    from tfaccel.autotune.trial import Trial as Trial
    from tfaccel.autotune.tune import tune as tune
    from tfaccel.batch_size import max_batch_size as max_batch_size
    from tfaccel.callbacks.accelerate import AccelCallback as AccelCallback
    from tfaccel.callbacks.profiler import ProfilerCallback as ProfilerCallback
    from tfaccel.core.plan import Pass as Pass
    from tfaccel.core.plan import Plan as Plan
    from tfaccel.core.plan import Unsupported as Unsupported
    from tfaccel.core.unsupported import Refusal as Refusal
    from tfaccel.core.workload import Workload as Workload
    from tfaccel.distribute import AccelStrategy as AccelStrategy
    from tfaccel.inference import AcceleratedModel as AcceleratedModel
    from tfaccel.inference import accelerate as accelerate
    from tfaccel.inference import load as load
    from tfaccel.loops import accelerate_step as accelerate_step
    from tfaccel.loops import plan_applied as plan_applied
    from tfaccel.measure.numerics import Drift as Drift
    from tfaccel.measure.numerics import Tolerance as Tolerance
    from tfaccel.measure.outcome import Outcome as Outcome
    from tfaccel.measure.timing import Speedup as Speedup

if importlib.util.find_spec("tensorflow") is None:
    raise ModuleNotFoundError(
        "tfaccel needs TensorFlow: install it with `pip install 'tfaccel[cpu]'` "
        "or, for NVIDIA GPUs, `pip install 'tfaccel[gpu]'`.",
        name="tensorflow",
    )

# The same names once more, for those who run the code: where each is defined.
_HOMES = {
    "AccelCallback": "tfaccel.callbacks.accelerate",
    "AccelStrategy": "tfaccel.distribute",
    "AcceleratedModel": "tfaccel.inference",
    "Drift": "tfaccel.measure.numerics",
    "Outcome": "tfaccel.measure.outcome",
    "Pass": "tfaccel.core.plan",
    "Plan": "tfaccel.core.plan",
    "ProfilerCallback": "tfaccel.callbacks.profiler",
    "Refusal": "tfaccel.core.unsupported",
    "Report": "tfaccel.autotune.report",
    "Speedup": "tfaccel.measure.timing",
    "Tolerance": "tfaccel.measure.numerics",
    "Trial": "tfaccel.autotune.trial",
    "Unsupported": "tfaccel.core.plan",
    "Workload": "tfaccel.core.workload",
    "accelerate": "tfaccel.inference",
    "accelerate_step": "tfaccel.loops",
    "data": "tfaccel.data",
    "load": "tfaccel.inference",
    "max_batch_size": "tfaccel.batch_size",
    "ops": "tfaccel.ops",
    "passes": "tfaccel.passes",
    "plan_applied": "tfaccel.loops",
    "tune": "tfaccel.autotune.tune",
}

__all__ = ["__version__", *_HOMES]

if not TYPE_CHECKING:  # a checker would take every name for one of the module's

    def __getattr__(name):
        inside = f"{__name__}.{name}"
        home = _HOMES.get(name, inside)
        # A folder of the package may be asked for without an import, as `tfaccel.distribute`.
        if home == inside and (name.startswith("_") or importlib.util.find_spec(inside) is None):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        if name == "Pass":  # a pass of the user's must not have the name of a built-in one
            importlib.import_module("tfaccel.passes")
        module = importlib.import_module(home)
        found = module if home == inside else getattr(module, name)
        globals()[name] = found
        return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
