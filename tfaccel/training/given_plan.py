"""What must be known before a plan that the user gave can be traced."""

import math
from typing import Any

import keras
import tensorflow as tf

from tfaccel.autotune.options import COLLECTED_STEPS
from tfaccel.compat import keras_private
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload


def must_observe(plan: Plan, workload: Workload) -> bool:
    """Whether a step of the original must run first.

    That step makes the variables of a model that is not built, and a user's own step may make
    more. The step of a loop also shows what it calls and returns.
    """
    model = workload.model
    if not model.built or workload.in_loop:
        return True
    names = ("train_step", "compute_loss", "compute_metrics")
    if plan.needs_batch and keras_private.overridden(model, keras.Model, *names):
        return True
    own = keras_private.overridden(model, keras.Model, "train_step")
    return own is not None and not all(item.built for item in workload.optimizers)


def calls_to_look_at(plan: Plan, workload: Workload) -> int:
    """How many calls' batches must be known before the plan is traced."""
    specs = tf.nest.flatten(workload.element_spec)
    if workload.num_replicas == 1 and plan.compiles_sizes(workload) and not _is_known(specs):
        return math.ceil(COLLECTED_STEPS / workload.model.steps_per_execution)
    return int(plan.needs_batch)


def _is_known(specs: list[Any]) -> bool:
    """Whether all batches have one shape, as far as their specs say."""
    return all(isinstance(s, tf.TensorSpec) and s.shape.is_fully_defined() for s in specs)
