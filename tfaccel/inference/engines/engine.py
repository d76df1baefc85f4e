"""Engines: libraries other than TensorFlow that make a model's predictions."""

import abc
import dataclasses
import importlib.metadata
import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any, ClassVar

import keras
import numpy as np
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.prior import Prior
from tfaccel.core.standalone import StandalonePass
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported, named
from tfaccel.core.workload import Workload
from tfaccel.inference.engines.eight_bits import EightBits
from tfaccel.inference.engines.forward import Forward
from tfaccel.inference.engines.words import Split, has_words
from tfaccel.passes import FrozenWeights

EIGHT_BITS = "int8"
PRECISIONS = ("float32", "bfloat16", EIGHT_BITS)
HINTS = ("latency", "throughput")


class Runner(abc.ABC):
    """A model that an engine runs. Several threads may run it at once."""

    @abc.abstractmethod
    def run(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """One batch of any size.

        Args:
            arrays: the inputs, in the order of `Forward.inputs`: arrays, or tensors on the CPU.

        Returns:
            The outputs, in the order of `Forward.outputs`. They are the caller's.
        """

    def run_any_size(self, arrays: Sequence[Any]) -> list[np.ndarray]:
        """As `run`, for batches of other sizes than the sample's."""
        return self.run(arrays)

    @abc.abstractmethod
    def save(self, folder: pathlib.Path) -> None:
        """Writes files into a folder for `Engine.load` and for programs without tfaccel."""


@dataclasses.dataclass(frozen=True)
class Engine(StandalonePass, is_base=True):
    """An engine in one configuration: a candidate beside TensorFlow's plans.

    It is handed the model's forward computation with the weights as constants, under the other
    passes of its plan, if there are any. A subclass is a frozen dataclass with a `name`, a
    `title`, the `module` that it needs and the `extra` that installs it; it imports that module
    in functions only.

    Args:
        precision: of the products: `"float32"`, `"bfloat16"` or, where the user
            allows it, `"int8"`.
        hint: `"latency"`, where all cores work on one batch, or `"throughput"`, where they
            share its samples.
    """

    title: ClassVar[str]
    module: ClassVar[str]
    extra: ClassVar[str]
    # Its precisions, the most precise first, and whether it converts layers in bfloat16.
    precisions: ClassVar[tuple[str, ...]] = PRECISIONS
    converts_bfloat16: ClassVar[bool] = True
    # The module that quantizes for it, and the extra that installs that.
    quantizer: ClassVar[str] = ""
    quantizer_extra: ClassVar[str] = ""
    # Converting and compiling take time beside the trace.
    compile_factor: ClassVar[float] = 1.5

    precision: str = "float32"
    hint: str = "latency"

    def __post_init__(self) -> None:
        for field, allowed in (("precision", self.precisions), ("hint", HINTS)):
            value = getattr(self, field)
            if value not in allowed:
                raise ValueError(
                    f"`{field}` must be one of {', '.join(allowed)}. Received: {value!r}"
                )

    @abc.abstractmethod
    def build(
        self,
        forward: Forward,
        sample: Sequence[Any],
        cache: pathlib.Path | None = None,
        eight_bits: EightBits | None = None,
    ) -> Runner:
        """Makes the engine ready to predict.

        Args:
            forward: what to compute.
            sample: inputs of the size that matters.
            cache: a folder for what compiling made; None for none.
            eight_bits: what an engine in 8 bits is calibrated by; None for another precision.

        Raises:
            Exception: the engine can't convert or compile it. The message names the op or the
                layer.
        """

    @abc.abstractmethod
    def load(self, folder: pathlib.Path, names: Sequence[str], sizes: Sequence[Any]) -> Runner:
        """Loads what `Runner.save` wrote. No code from the folder is run.

        Args:
            folder: where it is.
            names: of the inputs and then of the outputs, in the order of `Forward`'s.
            sizes: the sample's shapes.
        """

    @classmethod
    def missing(cls) -> Unsupported | None:
        """The package that must be installed first; None where nothing is missing."""
        if importlib.util.find_spec(cls.module) is not None:
            return None
        return Refusal.MISSING(
            f"{cls.title} is not installed", f"pip install 'tfaccel[{cls.extra}]'"
        )

    @classmethod
    def version(cls) -> str:
        """The version of what is installed, for the key of the cache; empty where nothing is."""
        try:
            return importlib.metadata.version(cls.module)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if workload.training:
            return Refusal.TASK("an engine trains nothing", "use tfaccel.accelerate")
        found = self.missing() or self._no_eight_bits(workload) or _inconvertible(workload)
        for layer in () if found or self.converts_bfloat16 else workload.layers:
            if str(getattr(layer, "compute_dtype", "")) == "bfloat16":
                return Refusal.DTYPE(
                    f"{named(layer)} computes in bfloat16, which {self.title} can't convert",
                    "an engine takes a model of float32 layers, and rounds it itself if that pays",
                )
        return found

    def _no_eight_bits(self, workload: Workload) -> Unsupported | None:
        if self.precision != EIGHT_BITS:
            return None
        if EIGHT_BITS not in workload.allow:
            return Refusal.SETTING(
                "8 bits are used only where they are asked for",
                "tfaccel.accelerate(model, x, y=labels, allow=('int8',))",
            )
        if importlib.util.find_spec(self.quantizer) is not None:
            return None
        extras = ",".join(dict.fromkeys((self.extra, self.quantizer_extra)))
        return Refusal.MISSING(
            f"{self.quantizer} is not installed, which makes 8 bits for {self.title}",
            f"pip install 'tfaccel[{extras}]'",
        )

    def applied(self, context: StepContext) -> Any:
        """A block that changes nothing: the engine takes the forward computation as it is."""
        return tf.name_scope("")

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=not workload.training,
            reason="an engine that only predicts lays out and joins whole graphs",
            gain=1.5,
        )

    def cache_key(self, workload: Workload) -> Any:
        return self.version()

    def compute_dtype(self, workload: Workload) -> str | None:
        return None if self.precision == "float32" else self.precision

    def variants(self, workload: Workload) -> Sequence["Engine"]:
        """The precisions that pay on the chip or are asked for, with the hints of the aim."""
        reduced = ["bfloat16"] if workload.device.fast_dtype == "bfloat16" else []
        asked = [EIGHT_BITS] if EIGHT_BITS in workload.allow else []
        wanted = [p for p in (*reduced, "float32", *asked) if p in self.precisions]
        shared = workload.optimize == "throughput" and workload.device.cores > 1
        hints = HINTS if shared and _samples(workload) > 1 else HINTS[:1]
        return [dataclasses.replace(self, precision=p, hint=h) for p in wanted for h in hints]


def unknown_ops(title: str, ops: Sequence[str], forward: Forward) -> str:
    """The error text of an engine that lacks these ops, with the layers that have them."""
    graph = forward.function.graph.get_operations()
    where = dict.fromkeys(op.name.rpartition("/")[0] for op in graph if op.type in ops)
    places = f", in {', '.join(where)}" if where else ""
    return f"{title} has no {', '.join(ops)}{places}"


def _samples(workload: Workload) -> int:
    leaves = tf.nest.flatten(workload.batches)
    ranked = [leaf for leaf in leaves if getattr(leaf, "shape", ())]
    return int(ranked[0].shape[0]) if ranked else 0


def _inconvertible(workload: Workload) -> Unsupported | None:
    """Why no engine can serve the model; None where one can."""
    if workload.device.kind != "CPU":
        return Refusal.DEVICE("the model runs on a GPU, and the engine runs on CPUs")
    own = keras_private.overridden(workload.model, keras.Model, "predict_step")
    if own is not None:
        return Refusal.OWN_CODE(f"{type(workload.model).__name__} has a {own} of its own")
    for spec in tf.nest.flatten(workload.element_spec):
        if not isinstance(spec, tf.TensorSpec):
            return Refusal.INPUTS(f"an input is no plain tensor ({type(spec).__name__})")
    if has_words(workload.element_spec):
        split = Split.of(workload.model)
        if isinstance(split, Unsupported):
            return split
    for layer in workload.layers:
        if str(getattr(layer, "compute_dtype", "")) == "float64":
            return Refusal.DTYPE(f"{named(layer)} computes in float64")
    return FrozenWeights().unsupported(workload) if workload.model.variables else None
