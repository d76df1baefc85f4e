"""Normalization layers by one operation, or with a shorter gradient."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import keras

from tfaccel.passes import _batch_norm, _layer_norm
from tfaccel.plan import Pass, Refusal
from tfaccel.scoped import instance_attribute
from tfaccel.workload import Workload


@dataclasses.dataclass(frozen=True)
class FusedNorm(Pass):
    """Runs BatchNormalization as one op, and LayerNormalization with a short gradient.

    Keras 3 makes both of a dozen elementwise ops and reductions. Here batch
    normalization (Ioffe and Szegedy, 2015) is one FusedBatchNormV3, which is
    oneDNN's or cuDNN's and takes 16-bit inputs as they are, and layer
    normalization (Ba et al., 2016) has its gradient in closed form. The maths is
    Keras's to rounding: biased moving variance, any epsilon, float32 statistics.

    A layer keeps its own `call` where that would not be so: masks, `renorm`,
    `synchronized`, float64, a `call` of the user's. Two
    things differ from Keras on purpose. A gradient of a gradient is the true one
    (Keras's misses a term, as `tf.nn.moments` stops the gradient of the mean in
    the variance). The gradient of gamma for an empty batch is 0, where Keras's
    is NaN.

    Source: https://arxiv.org/abs/1502.03167, https://arxiv.org/abs/1607.06450,
    https://www.tensorflow.org/api_docs/python/tf/raw_ops/FusedBatchNormV3
    """

    name: ClassVar[str] = "fused_norm"

    def refusal(self, workload: Workload) -> Refusal | None:
        obstacles = [obstacle for _, obstacle, _ in _norms(workload)]
        if not obstacles:
            return Refusal("the model has no BatchNormalization or LayerNormalization layer")
        return obstacles[0] if all(obstacles) else None

    def obstacles(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Refusal | None]]:
        """Every normalization layer, with what keeps its own `call`; None where it is replaced."""
        return ((layer, obstacle) for layer, obstacle, _ in _norms(workload))

    @contextlib.contextmanager
    def applied(self, workload: Workload) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for layer, obstacle, fused_call in _norms(workload):
                if obstacle is None:
                    stack.enter_context(instance_attribute(layer, "call", fused_call()))
            yield


def _norms(
    workload: Workload,
) -> Iterator[tuple[keras.layers.Layer, Refusal | None, Callable[[], Callable[..., Any]]]]:
    """Every normalization layer, what keeps it from being fused, and its fused `call`."""
    channels_first = workload.device.kind == "GPU"
    for layer in workload.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            obstacle = _batch_norm.obstacle(layer, channels_first)
            fused = functools.partial(_batch_norm.fused_call, layer, channels_first)
            yield layer, obstacle, fused
        elif isinstance(layer, keras.layers.LayerNormalization):
            obstacle = _layer_norm.obstacle(layer)
            yield layer, obstacle, functools.partial(_layer_norm.fused_call, layer)
