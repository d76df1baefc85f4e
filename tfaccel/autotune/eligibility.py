"""Reasons why a training can't be accelerated at all, in words."""

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.workload import Workload

# Not synchronous, or not TensorFlow's kernels.
_UNSERVED = (tf.distribute.experimental.ParameterServerStrategy, tf.distribute.TPUStrategy)


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
    if isinstance(strategy, _UNSERVED):
        return f"Training under {type(strategy).__name__} is left as it is."
    if strategy.num_replicas_in_sync > 1 and model.steps_per_execution > 1:
        return "Under several replicas Keras can't run several steps in one execution."
    return ""


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
