"""XLA for the whole step: `jit_compile`."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import keras
import tensorflow as tf

from tfaccel.compat.collectives import xla_obstacle
from tfaccel.compat.patching import set_attribute
from tfaccel.core.plan import Pass
from tfaccel.core.prior import CONVOLUTIONS, Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported, named
from tfaccel.core.workload import Workload, varies


@dataclasses.dataclass(frozen=True)
class XLA(Pass):
    """Compiles the step with XLA, or, with `jit_compile=False`, without it.

    On a CPU XLA pays for dense and elementwise work and loses much on convolutions, as
    it does not use oneDNN's. On a GPU Keras turns XLA on by itself; there the pass with
    `jit_compile=False` tries the step without it.

    Args:
        jit_compile: whether the step is compiled by XLA.

    Source: https://openxla.org/xla/tf2xla/tutorials/jit_compile
    """

    name: ClassVar[str] = "xla"
    # Compiling took 3 to 8 times the baseline's first step on the models of benchmarks/.
    compile_factor: ClassVar[float] = 4.0

    jit_compile: bool = True

    def unsupported(self, workload: Workload) -> Unsupported | None:
        model = workload.model
        if self.jit_compile and workload.num_replicas > 1:
            return Refusal.REPLICAS(xla_obstacle(workload.model.distribute_strategy))
        if bool(model.jit_compile) == self.jit_compile:
            state = "already uses" if self.jit_compile else "does not use"
            return Refusal.NO_USE(f"the model {state} XLA")
        if not self.jit_compile and workload.device.kind == "CPU":
            # On a CPU Keras never turns XLA on by itself, so the user did.
            return Refusal.SETTING(
                "the model was compiled with jit_compile=True", "compile without it"
            )
        return _obstacle(workload) if self.jit_compile else None

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """Every layer, with why XLA can't compile it; None where it can."""
        for layer in workload.layers:
            yield layer, _blocked(layer) if self.jit_compile else None

    @classmethod
    def suited(cls, workload: Workload) -> "XLA":
        return cls(jit_compile=not workload.model.jit_compile)

    def prior(self, workload: Workload) -> Prior:
        lost = workload.device.kind == "CPU" and workload.has(*CONVOLUTIONS, keras.layers.RNN)
        return Prior(
            pays=not workload.model.jit_compile and not lost,
            gain=1.1,
            reason="XLA fuses elementwise chains, but on a CPU replaces oneDNN's convolutions by "
            "slow ones, and recurrent loops are faster by themselves; on a GPU Keras has "
            "turned it on already",
        )

    def compiles_sizes(self, workload: Workload) -> bool:
        return self.jit_compile

    def applied(self, context: StepContext) -> contextlib.AbstractContextManager[None]:
        return set_attribute(context.workload.model, "jit_compile", self.jit_compile)


def _obstacle(workload: Workload) -> Unsupported | None:
    blocked = next(filter(None, map(_blocked, workload.layers)), None)
    if blocked is not None:
        return blocked
    if workload.device.kind == "GPU":
        # On a GPU Keras turns XLA on wherever it can, so the user turned it off.
        return Refusal.SETTING(
            "the model was compiled with jit_compile=False", "compile without it"
        )
    if any(varies(spec) for spec in tf.nest.flatten(workload.element_spec)):
        return Refusal.SIZES(
            "batches differ in more than their number of samples, and XLA compiles each shape anew",
            "pad them to one shape",
        )
    if workload.sizes_vary:
        return Refusal.SIZES(
            "batches come in many sizes, and XLA compiles the step anew for each",
            "make batches of one size, such as by `batch(size, drop_remainder=True)`",
        )
    return None


def _blocked(layer: keras.layers.Layer) -> Unsupported | None:
    if layer.supports_jit:
        return None
    return Unsupported(
        f"{named(layer)} can't be compiled by XLA",
        "move it out of the model, into the input pipeline" if not layer.weights else "",
    )
