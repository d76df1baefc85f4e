"""Channels-last computation of models that are written channels_first."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import keras
import tensorflow as tf

from tfaccel.compat import keras_graphs, keras_private
from tfaccel.compat.patching import instance_attributes
from tfaccel.core.layer_note import LayerNote, Runs
from tfaccel.core.plan import Pass
from tfaccel.core.prior import Prior
from tfaccel.core.step_context import StepContext
from tfaccel.core.unsupported import Refusal, Unsupported, named
from tfaccel.core.workload import Workload
from tfaccel.passes.layout import _follow, _rules
from tfaccel.passes.layout._flow import Flow
from tfaccel.passes.layout._follow import CHANNELS_FIRST, Call, Follow
from tfaccel.passes.layout._rules import Rule

# In messages such as "The Conv2D op currently only supports the NHWC tensor format on the CPU".
_FORMATS = ("NHWC", "NDHWC")


@dataclasses.dataclass(frozen=True)
class Layout(Pass):
    """Runs layers that are written channels_first with the channels last.

    TensorFlow's CPU kernels want the channels last: without oneDNN its channels_first
    convolutions do not run at all, so that such a model trains by this pass only. On
    GPUs Tensor Cores read 16-bit images channels last.

    Each convolution, pooling, padding, cropping and upsampling layer with
    `data_format="channels_first"` transposes its input, computes channels last with
    the same variables (Keras's kernels have one shape for both formats), and
    transposes back. What follows it is computed channels last too: normalization
    along the channels, activations, dropout (with the masks that would have been
    drawn), merges, concatenation. Transposes that undo each other are removed when
    TensorFlow optimizes the graph, so that they remain at the edges: at inputs,
    outputs, and where a layer needs the channels where they were (Flatten, Dense,
    attention, a layer of your own). Such layers run as they are written.

    In Functional and Sequential models no transpose remains between two layers that
    are followed. In a `call` of your own three remain in the gradient of each tensor
    that two layers read, since a GradientTape of yours might watch it.

    Name this pass after `fused_norm` (`"auto"` does): then fused normalizations are
    computed channels last, too.

    Example:

    >>> layers, first = keras.layers, {"data_format": "channels_first"}
    >>> inputs = keras.Input((3, 8, 8))
    >>> images = layers.ReLU()(layers.Conv2D(4, 3, **first)(inputs))
    >>> model = keras.Model(inputs, layers.GlobalAveragePooling2D(**first)(images))
    >>> model.compile("sgd", "mse")
    >>> accel = tfaccel.AccelCallback(["layout"], verbose=0)
    >>> x, y = np.ones((16, 3, 8, 8)), np.ones((16, 4))
    >>> history = model.fit(x, y, verbose=0, callbacks=[accel])
    >>> str(accel.plan)
    'layout'

    Source: https://www.tensorflow.org/api_docs/python/tf/nn/conv2d (formats on CPUs),
    https://docs.nvidia.com/deeplearning/performance/dl-performance-convolutional
    (Tensor Core layouts)
    """

    name: ClassVar[str] = "layout"
    # Two transposes a layer are traced, most of them to be removed again.
    compile_factor: ClassVar[float] = 1.3

    def unsupported(self, workload: Workload) -> Unsupported | None:
        if workload.num_replicas > 1:
            return Refusal.REPLICAS(
                "replicas are traced in threads that take turns inside a layer, and this pass "
                "changes the layer's axis meanwhile",
                'AccelStrategy("one_device") for this model, or write it channels_last',
            )
        obstacles = [obstacle for _, obstacle in self.layers(workload)]
        if not obstacles:
            return Refusal.NOTHING("no layer of the model has data_format='channels_first'")
        return obstacles[0] if all(obstacles) else None

    def prior(self, workload: Workload) -> Prior:
        return Prior(
            pays=workload.device.kind == "CPU" or workload.device.fast_dtype is not None,
            gain=1.3,
            reason="CPU kernels want the channels last, and without oneDNN run no channels_first "
            "convolution; Tensor Cores read 16-bit images channels last, while cuDNN is "
            "fast in float32 either way",
        )

    def describe(self, layer: Any, runs: Runs, workload: Workload) -> LayerNote:
        return LayerNote(runs.replaced(layout="channels_last") if runs.layout else runs)

    def fallback_reason(self, error: Exception) -> str:
        """Why the original step fails where the one under the pass does not; else empty."""
        says = str(error) if isinstance(error, tf.errors.OpError) else ""
        if any(name in says for name in _FORMATS):
            return "TensorFlow has no channels_first kernels for it on this device"
        return ""

    def layers(self, workload: Workload) -> Iterator[tuple[keras.layers.Layer, Unsupported | None]]:
        """Every channels_first layer, with why it stays so; None where it is followed."""
        for layer in workload.layers:
            rule = _rule(layer)
            goes_along = rule is not None and rule.follow is not _follow.spatial
            if goes_along or _is_cell(layer):
                continue
            if getattr(layer, "data_format", None) == CHANNELS_FIRST:
                yield layer, _obstacle(layer, rule)

    def applied(self, context: StepContext) -> contextlib.AbstractContextManager[None]:
        return instance_attributes(_patches(context.workload, Flow()))


def _patches(workload: Workload, flow: Flow) -> Iterator[tuple[Any, str, Any]]:
    """The calls of layers, and of operations in graphs of layers, that are followed."""
    for layer in workload.layers:
        call = _call_of(layer, flow)
        if call is not None:
            yield layer, "call", call
    for operation, follow in _operations(workload):
        yield operation, "call", _following(operation, follow, flow)


def _rule(layer: keras.layers.Layer) -> Rule | None:
    return next((rule for rule in _rules.RULES if isinstance(layer, rule.kind)), None)


def _is_cell(layer: keras.layers.Layer) -> bool:
    """Whether a layer is the inner part of a recurrent layer."""
    return hasattr(layer, "state_size") and not isinstance(layer, keras.layers.RNN)


def _obstacle(layer: keras.layers.Layer, rule: Rule | None) -> Unsupported | None:
    who = named(layer)
    if rule is None:
        return Unsupported(f"{who} is of a kind that can't be followed", "write it channels_last")
    own = _own_method(layer, rule)
    if own is not None:
        return Refusal.OWN_CODE(
            f"{who} has a `{own}` of its own, which may rely on where the channels are",
            "write it channels_last",
        )
    return None


def _own_method(layer: keras.layers.Layer, rule: Rule) -> str | None:
    return keras_private.overridden(layer, rule.kind, *rule.methods, by_user=True)


def _call_of(layer: keras.layers.Layer, flow: Flow) -> Callable[..., Any] | None:
    """What stands in for a layer's `call`; None where nothing needs to."""
    rule = _rule(layer)
    if rule is not None and _own_method(layer, rule) is None:
        return _following(layer, rule.follow, flow)
    if keras_graphs.runs_graph(layer):
        return _within(flow.graph_run, layer.call)
    if rule is not None or _may_call_layers(layer):
        return _within(flow.user_code, layer.call)
    return None


def _may_call_layers(layer: keras.layers.Layer) -> bool:
    """Whether a layer's `call` is the user's, or calls other layers."""
    keras_made = type(layer).__module__.startswith("keras.")
    has_layers = len(keras_private.flatten_layers(layer)) > 1
    return not keras_made or has_layers or isinstance(layer, keras.layers.Lambda)


def _within(
    context: Callable[[], contextlib.AbstractContextManager[None]], own: Callable[..., Any]
) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with context():
            return own(*args, **kwargs)

    return call


def _following(layer: Any, follow: Follow, flow: Flow) -> Callable[..., Any]:
    """A layer's `call`, followed wherever its arguments allow it."""
    own = layer.call

    def call(*args: Any, **kwargs: Any) -> Any:
        this = Call(layer, own, flow, args, kwargs)
        outputs = None if not args or _is_masked(this) else follow(this)
        return own(*args, **kwargs) if outputs is None else outputs

    return call


def _is_masked(call: Call) -> bool:
    """Whether there is a mask: its dimensions are those of the model as written."""
    options = [*call.args[1:], *call.kwargs.values()]
    given = any(isinstance(leaf, tf.Tensor) for leaf in tf.nest.flatten(options))
    is_layer = isinstance(call.layer, keras.layers.Layer)
    leaves = tf.nest.flatten(call.args)
    return (is_layer and given) or any(keras_private.mask_of(x) is not None for x in leaves)


def _operations(workload: Workload) -> Iterator[tuple[Any, Follow]]:
    seen: set[int] = set()
    for layer in workload.layers:
        for operation in keras_graphs.graph_operations(layer):
            follow = _rules.operation_follow(type(operation).__name__)
            if follow is not None and id(operation) not in seen:
                seen.add(id(operation))
                yield operation, follow
