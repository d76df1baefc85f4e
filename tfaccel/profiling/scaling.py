"""How well several replicas work together, compared with one that trains alone."""

import dataclasses
import functools
import statistics
from typing import Any

import keras
import tensorflow as tf

from tfaccel.core.plan import Plan
from tfaccel.core.replicas import local_batches, replica_spec
from tfaccel.core.workload import Workload
from tfaccel.measure.timing import Clock, timed
from tfaccel.steps.compiled_step import build_step
from tfaccel.steps.replay import kept
from tfaccel.system import notices

# Steps of the replica alone that are timed, after the one that is traced.
_TIMED_STEPS = 5


@dataclasses.dataclass(frozen=True)
class Scaling:
    """The times of a replica alone."""

    replicas: int = 1  # how many train together
    # A step of one replica by itself, on its share of a batch; None where that was not
    # measured.
    alone_seconds: float | None = None

    def efficiency(self, step_seconds: float | None) -> float | None:
        """The throughput of all replicas over that of as many that never wait for another.

        Each has the same share of a batch either way (weak scaling), so it is the time of
        a step alone over the time of a step together.

        Args:
            step_seconds: of all replicas together.

        Source: Gustafson, Reevaluating Amdahl's Law (1988),
        https://doi.org/10.1145/42411.42415.
        """
        if self.replicas == 1 or not self.alone_seconds or not step_seconds:
            return None
        return self.alone_seconds / step_seconds


def measure_scaling(
    model: keras.Model, batch: Any, element_spec: Any, plan: Plan, clock: Clock
) -> Scaling:
    """Times a copy of the model that trains alone, under the same plan.

    The model itself, its weights and its optimizer are not touched.
    """
    replicas = int(model.distribute_strategy.num_replicas_in_sync)
    try:
        share = local_batches(batch)[0]
        copy = _copy(model)
        data = kept((share,), replica_spec(element_spec), forever=True)
        step = functools.partial(build_step(Workload(copy), plan), iter(data))
        with tf.device(_device(model)):
            step()
            seconds = [timed(step, clock) for _ in range(_TIMED_STEPS)]
    except Exception as error:
        # Such as a model that can't be copied, or whose copy can't be compiled.
        notices.warn(
            f"tfaccel could not measure a replica alone: {error!r}", RuntimeWarning, stacklevel=2
        )
        return Scaling(replicas)
    return Scaling(replicas, statistics.median(seconds))


def _copy(model: keras.Model) -> keras.Model:
    copy = keras.models.clone_model(model)
    if not copy.built and model.built:
        copy.build(model.input_shape)
    copy.set_weights(model.get_weights())
    copy.compile_from_config(model.get_compile_config())
    if not copy.compiled:
        raise ValueError("the loss or the optimizer can't be made anew from its config")
    return copy


def _device(model: keras.Model) -> str:
    """Where the first replica of this process runs."""
    return model.distribute_strategy.extended.worker_devices[0]
