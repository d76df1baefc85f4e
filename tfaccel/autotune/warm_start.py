"""A plan from the cache that runs without a check, as nothing can have changed.

The cache knows a model by its layers' configs, its losses and its optimizer. Where all of these are
Keras's own, the configs say all that a step computes, so it is the step that was compared when the
plan was chosen. A class or function that is not Keras's is known by its name alone, and its code
may have changed.
"""

import dataclasses
from typing import Any

import keras

from tfaccel.autotune.options import Options
from tfaccel.autotune.report import Report
from tfaccel.autotune.tune_and_cache import known_report
from tfaccel.compat import keras_private
from tfaccel.core.workload import Workload
from tfaccel.passes import PASSES

_NOTE = "From the cache: this very training was tuned on this machine before."
# Methods that change the step when a user overrides them.
_STEP = ("train_step", "compute_loss", "compute_metrics", "make_train_function")


def known_for_sure(workload: Workload, settings: Options) -> Report | None:
    """The cached plan that may run from the first step on; None where none may.

    Args:
        workload: with a batch; nothing else of it need be known yet.
        settings: what the user asked for."""
    if not settings.cache or workload.strategy is not None or not is_kerass_own(workload.model):
        return None
    known = known_report(workload, settings)
    if known is None or known.plan.is_baseline:
        return None
    timed = dataclasses.replace(workload, step_seconds=known.trials[0].step_seconds or 0.0)
    for item in known.plan.passes:
        if type(item) not in PASSES or item.unsupported(timed) is not None:
            return None
    return dataclasses.replace(known, tuning_seconds=0.0, note=_NOTE, cached=True)


def is_kerass_own(model: keras.Model) -> bool:
    """Whether Keras wrote all that a step of the model computes, metrics aside.

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> is_kerass_own(model)
    True
    """
    if not model.built or keras_private.overridden(model, keras.Model, *_STEP) is not None:
        return False
    losses = (one for one in keras.tree.flatten(model.loss) if not isinstance(one, str))
    parts = (*keras_private.flatten_layers(model), model.optimizer, *losses)
    return all(map(_is_told, (part for part in parts if part is not None)))


def _is_told(part: Any) -> bool:
    """Whether a part is Keras's, and its config names nothing that is not."""
    if not keras_private.is_from_keras(part) or "call" in vars(part):
        return False
    try:
        return not isinstance(part, keras.layers.Lambda) and _is_plain(part.get_config())
    except Exception:  # what can't be written down
        return False


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        module = value.get("module")
        if module is not None and not str(module).startswith("keras"):
            return False
        named = value.get("class_name") not in ("function", "__lambda__")
        return named and all(map(_is_plain, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, str | int | float | bool)
