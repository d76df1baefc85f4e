"""Full precision: models written for 16 bits, on chips that have no fast 16 bits."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, ClassVar

import keras

from tfaccel.compat import keras_private
from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported, is_reduced, named
from tfaccel.core.workload import Workload

# By these attributes layers say how much they draw.
_RATES = ("rate", "stddev", "dropout", "recurrent_dropout")


@dataclasses.dataclass(frozen=True)
class FullPrecision(LayerPass):
    """Layers with the policy mixed_bfloat16 or mixed_float16 compute in float32.

    A model written for Tensor Cores trains on every chip, but on one without 16-bit
    instructions each operation is emulated: operands are widened, computed with and rounded
    again, and most kernels are plain loops. The weights are float32 under these policies
    anyway. So the pass computes the step in float32, and the model keeps its policies: its
    layers have another one only while a step is traced.

    These layers stay in their own dtype: those that make the outputs, as losses, metrics and
    `predict` see that dtype; those that draw random numbers, which would draw others; and those
    with 16-bit weights.

    The step is more precise than the original, whose rounding a report shows as drift. A loss
    scale is not changed.

    Source: https://www.tensorflow.org/guide/mixed_precision
    """

    name: ClassVar[str] = "full_precision"

    def compute_dtype(self, workload: Workload) -> str:
        return "float32"

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if not any(is_reduced(layer) for layer in workload.layers):
            return Refusal.NOTHING("no layer of the model computes in 16 bits")
        told = ((obstacle, is_reduced(layer)) for layer, obstacle in self.layers(workload))
        kept = [obstacle for obstacle, reduced in told if reduced]
        return None if None in kept else kept[0]

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=workload.device.kind == "CPU",
            gain=3.0,
            reason="a CPU without 16-bit instructions emulates them; a GPU without Tensor Cores "
            "saves memory by them, and some time",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        return LayerNote(runs.replaced(dtype=self.compute_dtype(workload)))

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        yield "dtype_policy", keras.DTypePolicy("float32")

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """Every layer, with why it keeps its own dtype; None where that is changed."""
        makers = map(keras_private.output_layers, workload.models)
        outputs = {id(layer) for layer in itertools.chain.from_iterable(makers)}
        for layer in workload.layers:
            obstacle = _obstacle(layer, workload.device.fast_dtype)
            if obstacle is None and id(layer) in outputs:
                obstacle = Unsupported(f"layer {layer.name!r} makes an output of the model")
            yield layer, obstacle


def _obstacle(layer: keras.layers.Layer, fast_dtype: str | None) -> Unsupported | None:
    who = named(layer)
    if not is_reduced(layer):
        return Refusal.NO_USE(f"{who} computes in {layer.compute_dtype}")
    if type(layer.dtype_policy) is not type(keras.DTypePolicy("float32")):
        return Refusal.SETTING(f"{who} has a {type(layer.dtype_policy).__name__}")
    if layer.compute_dtype == fast_dtype:
        return Refusal.NO_USE(f"{who} computes in {fast_dtype}, which this device multiplies fast")
    if str(layer.variable_dtype) != "float32":
        return Refusal.DTYPE(f"{who} has weights in {layer.variable_dtype}")
    if _draws(layer):
        return Refusal.RANDOM(f"{who} draws random numbers, and would draw others in float32")
    return None


def _draws(layer: Any) -> bool:
    """Whether a layer itself, and not one inside it, draws random numbers."""
    rates = [getattr(layer, name, None) for name in _RATES]
    known = [rate for rate in rates if isinstance(rate, int | float)]
    if isinstance(layer, keras.layers.RNN):
        return any(known)  # its cell's
    return hasattr(layer, "seed_generator") and (any(known) or not known)
