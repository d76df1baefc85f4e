"""Mixed precision: 16-bit products, float32 weights, updates, norms and losses."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.layer_pass import LayerPass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported, is_reduced, named
from tfaccel.core.workload import Workload
from tfaccel.passes.precision._exact_sums import exact_sums
from tfaccel.passes.precision.loss_scale import LossScale

_SOFTMAX = (keras.activations.softmax, keras.activations.log_softmax)
_FLOAT32_LAYERS = (keras.layers.Normalization, keras.layers.Rescaling)


@dataclasses.dataclass(frozen=True)
class MixedPrecision(LayerPass):
    """Layers compute in bfloat16 or float16; variables and updates stay float32.

    As with Keras's `mixed_bfloat16` and `mixed_float16` policies, but only in the
    traced step: the layers' own policies are float32 again when the trace ends, so
    checkpoints and saved models never see it. In float32 stay: the layers that make
    the model's outputs (for a subclassed model: its last layer), every softmax,
    statistics of normalisation layers (Keras computes them in float32 under any
    policy), the losses, and the drawing of dropout masks: a bfloat16
    draw has 128 levels, so that a rate of 0.001 would drop 0.8 %, and its masks
    would differ from those of the untouched step.

    float16 has a narrow range, so its loss is scaled: dynamically, starting from
    2^15, halved when a gradient overflows (that step is skipped), doubled after
    2000 good steps, as in `keras.optimizers.LossScaleOptimizer`. The scale lives
    with the compiled step.

    Args:
        dtype: `"bfloat16"`, `"float16"`, or `"auto"` for the one that the device
            multiplies fast.
        keep: names of layers to leave in float32.

    Raises:
        ValueError: `dtype` is something else.

    >>> accel = tfaccel.AccelCallback([tfaccel.passes.MixedPrecision("bfloat16")])

    Source: Micikevicius et al., Mixed Precision Training, arXiv:1710.03740;
    https://www.tensorflow.org/guide/mixed_precision
    """

    name: ClassVar[str] = "mixed_precision"
    # Casts make the graph about a third larger.
    compile_factor: ClassVar[float] = 1.3

    dtype: Literal["auto", "bfloat16", "float16"] = "auto"
    keep: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in ("auto", "bfloat16", "float16"):
            raise ValueError(
                f'`dtype` must be "auto", "bfloat16" or "float16". Received: {self.dtype!r}'
            )

    def compute_dtype(self, workload: Workload) -> str:
        return (workload.device.fast_dtype or "bfloat16") if self.dtype == "auto" else self.dtype

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if self.dtype == "auto" and workload.device.fast_dtype is None:
            return Refusal.DEVICE(
                _no_hardware(workload), 'MixedPrecision(dtype="bfloat16") insists'
            )
        for layer in workload.layers:
            if is_reduced(layer):
                policy = getattr(layer.dtype_policy, "name", layer.dtype_policy)
                return Refusal.SETTING(f"layer {layer.name!r} has the policy {policy!r} already")
        if self.compute_dtype(workload) == "float16":
            for optimizer in workload.optimizers:
                if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                    return Refusal.SETTING(
                        f"the optimizer {optimizer.name!r} scales the loss already"
                    )
        if all(reason for _, reason in self.layers(workload)):
            return Refusal.DTYPE("no layer in float32 could compute in 16 bits")
        return None

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=workload.device.kind == "GPU" or not workload.has(keras.layers.RNN),
            gain=1.4,
            reason="16-bit products run at twice the rate and more where the chip has them; "
            "recurrent cells on a CPU lose more by casts than they win",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        return LayerNote(runs.replaced(dtype=self.compute_dtype(workload)))

    def sparing(self, layer: str) -> "MixedPrecision":
        return dataclasses.replace(self, keep=(*self.keep, layer))

    @contextlib.contextmanager
    def applied(self, context: StepContext) -> Iterator[None]:
        workload = context.workload
        dtype = self.compute_dtype(workload)
        with contextlib.ExitStack() as stack:
            if dtype == "bfloat16" and workload.device.kind == "CPU":
                stack.enter_context(exact_sums())
            stack.enter_context(super().applied(context))
            if dtype == "float16":
                if self.name not in context.scratch:
                    context.scratch[self.name] = LossScale(workload.strategy)
                stack.enter_context(context.scratch[self.name].applied(workload.optimizers))
            yield

    def patches(self, layer: Any, context: StepContext) -> Iterator[tuple[str, Any]]:
        policy = keras.DTypePolicy(f"mixed_{self.compute_dtype(context.workload)}")
        yield "dtype_policy", policy
        if _is_plain_dropout(layer):
            yield "call", _float32_mask(layer)

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """Every layer, with why it keeps its own dtype; None where that is changed."""
        makers = map(keras_private.output_layers, workload.models)
        kept = {id(layer) for layer in itertools.chain.from_iterable(makers)}
        for layer in workload.layers:
            if id(layer) in kept:
                yield layer, Unsupported(f"layer {layer.name!r} makes an output of the model")
            elif layer.name in self.keep:
                yield layer, Refusal.SETTING(f"layer {layer.name!r} is named in `keep`")
            else:
                yield layer, _obstacle(layer)


def _no_hardware(workload: Workload) -> str:
    device = workload.device
    if device.kind == "GPU":
        return f"{device.name} has no 16-bit Tensor Cores"
    return f"this CPU ({device.name}) has no bfloat16 instructions (avx512_bf16 or AMX)"


def _is_plain_dropout(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.layers.Dropout) and (
        type(layer).call is keras.layers.Dropout.call
    )


def _obstacle(layer: keras.layers.Layer) -> Unsupported | None:
    who = named(layer)
    if type(layer.dtype_policy) is not type(keras.DTypePolicy("float32")):
        # A quantized layer, or a map of policies: the user's own choice.
        return Refusal.SETTING(f"{who} has a {type(layer.dtype_policy).__name__}")
    if layer.dtype_policy.name != "float32":
        return Refusal.SETTING(f"{who} has the policy {layer.dtype_policy.name!r}")
    if isinstance(layer, _FLOAT32_LAYERS):
        return Unsupported(f"{who} is of a kind that stays in float32")
    if not _is_one_softmax(layer):
        return Unsupported(f"{who} makes its softmax of several ops, which stay in float32")
    if hasattr(layer, "seed_generator") and not _is_plain_dropout(layer):
        # Draws in its compute dtype; recurrent cells draw through a method of their own.
        if isinstance(getattr(layer, "recurrent_dropout", None), float):
            return None
        return Refusal.RANDOM(f"{who} draws random numbers, and would draw others in 16 bits")
    if getattr(layer, "activation", None) in _SOFTMAX:
        return Unsupported(f"{who} ends in a softmax, which stays in float32")
    return None


def _is_one_softmax(layer: Any) -> bool:
    """Whether a softmax layer is TensorFlow's one op, which has float32 inside for 16 bits.

    Along several axes Keras makes it of exponentials and sums in the layer's dtype. True
    for layers that are no softmax.
    """
    kind = keras.layers.Softmax
    if not isinstance(layer, kind):
        return True
    several = isinstance(layer.axis, list | tuple) and len(layer.axis) > 1
    return keras_private.overridden(layer, kind, "call") is None and not several


def _float32_mask(layer: keras.layers.Layer) -> Callable[..., Any]:
    """`Dropout.call` for 16-bit inputs with the mask that float32 inputs would get."""

    def call(inputs: Any, training: bool = False) -> Any:
        if not training or not layer.rate > 0:
            return inputs
        y = keras.random.dropout(
            tf.cast(inputs, tf.float32),
            rate=layer.rate,
            noise_shape=layer.noise_shape,
            seed=layer.seed_generator,
        )
        return tf.cast(y, inputs.dtype)

    return call
