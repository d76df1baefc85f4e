"""`keras.layers.MultiHeadAttention` and `GroupQueryAttention` by `tfaccel.ops.attention`."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from tfaccel.compat import keras_private
from tfaccel.compat.keras_private import ATTENTION_PRODUCTS
from tfaccel.compat.patching import instance_attributes
from tfaccel.core.unsupported import Refusal, Unsupported, kind_of, named, other_dtype, own_method
from tfaccel.ops.attention import ChosenProducts, Products, attend
from tfaccel.ops.kernels import Chooser

KINDS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
# The methods that do the maths; those that make masks stay Keras's.
_MATHS = ("call", "_build_attention", "_compute_attention", "_masked_softmax")


def obstacle(layer: Any) -> Unsupported | None:
    """Why this attention layer keeps Keras's own `call`, as far as it is known before a call."""
    return (
        own_method(layer, kind_of(layer, KINDS) or type(layer), *_MATHS)
        or _obstacle_in_options(layer)
        or _obstacle_in_parts(layer)
    )


def _obstacle_in_options(layer: Any) -> Unsupported | None:
    if keras_private.wants_flash_attention(layer):
        return Refusal.SETTING(
            f"{named(layer)} uses flash_attention", "Keras has none on TensorFlow"
        )
    axes = getattr(layer, "attention_axes", None)
    if axes is not None and tuple(axes) != (1,):
        cause = f"{named(layer)} attends along axes {tuple(axes)}"
        return Unsupported(cause, "attend along one sequence")
    return other_dtype(layer)


def _obstacle_in_parts(layer: Any) -> Unsupported | None:
    if not layer.built:
        return None
    parts = keras_private.attention_parts(layer)
    for part in (parts.query, parts.key, parts.value, parts.output):
        inside = f"{named(layer)} has a part {part.name!r}"
        if not isinstance(part, keras.layers.EinsumDense):
            return Refusal.OWN_CODE(f"{inside} of another class, {type(part).__name__}")
        if keras_private.overridden(part, keras.layers.EinsumDense, "call") is not None:
            return Refusal.OWN_CODE(f"{inside} with a `call` of its own")
        if getattr(part, "quantization_mode", None):
            return Unsupported(f"{inside} that is quantized to {part.quantization_mode}")
        if part.activity_regularizer is not None:
            return Unsupported(f"{inside} with an activity_regularizer")
        if part.compute_dtype != layer.compute_dtype:
            return Refusal.DTYPE(f"{inside} that computes in {part.compute_dtype}")
    return None


def fused_call(layer: Any, chooser: Callable[[], Chooser | None]) -> Callable[..., Any]:
    """The layer's `call`: Keras's own, in which products and attention are replaced.

    Masks, gates and heads that share keys stay Keras's code. `chooser` gives, at the time of the
    call, who chooses the kernels; None for TensorFlow's.
    """
    own_call = layer.call
    signature = inspect.signature(own_call)

    def call(query: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        given = signature.bind(query, value, *args, **kwargs).arguments
        key = value if given.get("key") is None else given["key"]
        if given.get("return_attention_scores") or not _serves(layer, query, key, value):
            return own_call(query, value, *args, **kwargs)
        replacements = _replacements(layer, query, key, value, chooser()).items()
        with instance_attributes((layer, *replaced) for replaced in replacements):
            return own_call(query, value, *args, **kwargs)

    return call


def _serves(layer: Any, *inputs: Any) -> bool:
    plain = all(
        isinstance(x, tf.Tensor)
        and x.shape.rank == 3
        and x.shape[-1] is not None
        and x.dtype.name == layer.compute_dtype
        for x in inputs
    )
    # Asked again: a layer may have been built, or a pass may have changed dtypes, since.
    return plain and not (_obstacle_in_options(layer) or _obstacle_in_parts(layer))


def _replacements(
    layer: Any, query: Any, key: Any, value: Any, chooser: Chooser | None
) -> Mapping[str, Any]:
    """What stands in for parts of the layer during one call."""
    parts = keras_private.attention_parts(layer)
    products = ChosenProducts(layer.name, chooser) if chooser else Products()
    made = _projections(
        [(query, parts.query, parts.scale), (key, parts.key, 1.0), (value, parts.value, 1.0)],
        products,
    )

    def compute_attention(
        query: tf.Tensor,
        key: tf.Tensor,
        value: tf.Tensor,
        attention_mask: Any = None,
        training: bool | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> tuple[tf.Tensor, None]:
        has_dropout = layer.dropout > 0
        dropped = _dropped(parts.dropout, query, key, training) if has_dropout else None
        mask = None if attention_mask is None else _four_dimensions(attention_mask)
        # With dropout Keras's softmax gives a query that sees no key zeros.
        y = attend(query, key, value, mask, use_causal_mask, dropped, has_dropout, products)
        return y, None

    projections = (lambda _, x=x: x for x in made)
    projected = dict(zip(ATTENTION_PRODUCTS, projections, strict=False))
    output = {ATTENTION_PRODUCTS[-1]: lambda x: _project(x, [(parts.output, 1.0)], products)[0]}
    return {**projected, **output, "_compute_attention": compute_attention}


def _projections(
    wanted: Sequence[tuple[tf.Tensor, Any, float]], products: Products
) -> list[tf.Tensor]:
    """Each tensor projected by its EinsumDense layer and scaled; one product for each tensor."""
    by_tensor: dict[int, list[int]] = {}
    for i, (x, _, _) in enumerate(wanted):
        by_tensor.setdefault(id(x), []).append(i)
    made: dict[int, tf.Tensor] = {}
    for places in by_tensor.values():
        parts = [wanted[i][1:] for i in places]
        made |= dict(zip(places, _project(wanted[places[0]][0], parts, products), strict=True))
    return [made[i] for i in range(len(wanted))]


def _project(
    x: tf.Tensor, parts: Sequence[tuple[Any, float]], products: Products
) -> list[tf.Tensor]:
    """What EinsumDense layers make of one tensor, by one product of matrices.

    `x` is `(batch, positions, ...)`; each layer comes with what its result is multiplied by.
    """
    bound = math.prod(x.shape[2:])
    shapes = [part.kernel.shape[x.shape.rank - 2 :] for part, _ in parts]
    kernels = [tf.reshape(_tensor(p.kernel, x) * s, [bound, -1]) for p, s in parts]
    y = products.of_weights(_reshaped(x, x, [bound]), _joined(kernels, 1))
    if parts[0][0].bias is not None:
        biases = [tf.reshape(_tensor(p.bias, x) * s, [-1]) for p, s in parts]
        # TensorFlow fuses a product and the BiasAdd behind it.
        y = tf.nn.bias_add(y, _joined(biases, 0))
    pieces = tf.split(y, [math.prod(s) for s in shapes], -1) if len(parts) > 1 else [y]
    return [_reshaped(piece, x, shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _reshaped(x: tf.Tensor, like: tf.Tensor, rest: Sequence[int]) -> tf.Tensor:
    """`x` with the batch and the positions of `like`, and the other dimensions `rest`."""
    y = tf.reshape(x, tf.concat([tf.shape(like)[:2], rest], 0))
    y.set_shape([*like.shape[:2], *rest])
    return y


def _joined(tensors: Sequence[tf.Tensor], axis: int) -> tf.Tensor:
    return tensors[0] if len(tensors) == 1 else tf.concat(tensors, axis)


def _tensor(variable: Any, like: tf.Tensor) -> tf.Tensor:
    return tf.cast(keras.ops.convert_to_tensor(variable), like.dtype)


def _dropped(dropout: Any, query: tf.Tensor, key: tf.Tensor, training: Any) -> tf.Tensor | None:
    """Keras's own draw for the probabilities, in their shape; None where nothing is dropped."""
    if training is not None and not training:
        return None
    batch, queries, heads = tf.unstack(tf.shape(query)[:3])
    ones = tf.ones([batch, heads, queries, tf.shape(key)[1]], query.dtype)
    drawn = dropout(ones, training=training)
    if drawn.dtype == tf.float32:
        return drawn
    # In float32, as 16 bits would round the inverse of the share that is kept.
    return tf.cast(drawn > 0, tf.float32) / (1.0 - dropout.rate)


def _four_dimensions(mask: Any) -> tf.Tensor:
    """A mask as booleans that broadcast to `(batch, heads, queries, keys)`."""
    mask = tf.cast(keras.ops.convert_to_tensor(mask), tf.bool)
    while mask.shape.rank < 4:
        mask = tf.expand_dims(mask, -3)
    return mask
