"""Reasons why a training can't be accelerated at all, in words."""

import keras
import tensorflow as tf

from tfaccel.autotune.options import COLLECTED_STEPS, Options
from tfaccel.compat import keras_private
from tfaccel.core.workload import Workload

# Not synchronous, or not TensorFlow's kernels.
UNSERVED = (tf.distribute.experimental.ParameterServerStrategy, tf.distribute.TPUStrategy)
# What a plan's first step takes at least, in first steps of the original: of those that were
# measured (expected/priors.json) nine in ten took longer.
_LEAST_TRACE = 0.25


def ineligibility(model: keras.Model) -> str:
    """Why acceleration is impossible from the start; empty where it is possible."""
    if model.run_eagerly:
        return (
            "The model runs eagerly (run_eagerly=True), so there is no compiled step to accelerate."
        )
    if tf.config.functions_run_eagerly():
        return (
            "TensorFlow runs functions eagerly (tf.config.run_functions_eagerly(True)), so there "
            "is no compiled step to accelerate."
        )
    maker = keras_private.overridden(model, keras.Model, "make_train_function")
    if maker is not None:
        return (
            f"{type(model).__name__} has a {maker} of its own, so its step can't be traced anew "
            "under a plan."
        )
    strategy = model.distribute_strategy
    if isinstance(strategy, UNSERVED):
        return f"Training under {type(strategy).__name__} is left as it is."
    return ""


def too_few(steps: int | None) -> str:
    """Why nothing is tried in a fit that ends before anything is decided; empty for another.

    Args:
        steps: how many there are in all, as the processes agreed; None where unknown.
    """
    few = steps is not None and steps <= COLLECTED_STEPS
    return f"{steps} steps are too few to try anything." if few else ""


def too_short(workload: Workload, least: float | None, seconds: float, bound: float) -> str:
    """Why nothing is tried, in a sentence.

    Args:
        workload: what is trained.
        least: seconds of the cheapest trial; None where no pass serves the model.
        seconds: what trials may cost.
        bound: the most that they may cost however long the training is.
    """
    if least is None:
        return "No pass serves this model on this machine."
    if seconds >= bound:
        return f"A trial takes about {least:.1f} s; `max_tuning_seconds` allows {seconds:.1f}."
    if workload.steps_to_come is None:
        return "The length of this training is unknown, so nothing was tried."
    return (
        f"The rest of this training is too short to pay for a trial (about {least:.1f} s; "
        f"{seconds:.1f} s may be spent)."
    )


def plainly_too_short(workload: Workload, settings: Options) -> str:
    """Why nothing can pay, where that is seen without a look at any pass.

    Args:
        workload: with its baseline times.
        settings: what the user asked for.

    Returns:
        A sentence; empty where something may pay, and where the cache may have a plan.
    """
    if settings.tuning != "quick" or workload.steps_to_come is None or workload.strategy:
        return ""
    least = _LEAST_TRACE * max(workload.first_step_seconds, workload.trace_seconds)
    seconds, bound = settings.budget.seconds(workload), settings.budget.max_seconds
    if seconds >= least or (settings.cache is not None and settings.cache.has_plans()):
        return ""
    return too_short(workload, least, seconds, bound)
