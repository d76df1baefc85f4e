"""Small Keras models by hypothesis: what they are made of is drawn as plain data, then built."""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from early import built_early
from hypothesis import strategies as st
from keras import layers

ACTIVATIONS = [None, "relu", "gelu", "tanh", "sigmoid", "softmax", "silu", "elu", "leaky_relu"]
SIZES = st.sampled_from([1, 2, 3, 5, 7])
Layer = tuple[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A training as hypothesis draws, shrinks and prints it."""

    kind: str
    shape: tuple[int, ...]
    layers: list[Layer]
    outputs: int
    loss: str
    policy: str
    optimizer: Layer
    weights: str
    feed: str
    batch: int
    rest: int


def _layer(name: str, **fields: st.SearchStrategy) -> st.SearchStrategy[Layer]:
    return st.tuples(st.just(name), st.fixed_dictionaries(fields))


ACTIVATION, FLAG = st.sampled_from(ACTIVATIONS), st.booleans()
PADDING = st.sampled_from(["valid", "same"])
# No normal random numbers: XLA computes those to float32's precision, in float64 too.
ANYWHERE = [
    _layer("Dense", units=SIZES, activation=ACTIVATION, use_bias=FLAG),
    _layer("BatchNormalization", center=FLAG, scale=FLAG, momentum=st.sampled_from([0.9, 0.5])),
    _layer("LayerNormalization", center=FLAG, scale=FLAG),
    _layer("RMSNormalization"),
    _layer("UnitNormalization"),
    _layer("Dropout", rate=st.sampled_from([0.0, 0.3]), seed=st.just(3)),
    _layer("Activation", activation=st.sampled_from(ACTIVATIONS[1:])),
    _layer("Rescaling", scale=st.just(0.5)),
    _layer("residual"),
    _layer("joined"),
]
SEQUENCES = [
    _layer("LSTM", units=SIZES, return_sequences=st.just(True), go_backwards=FLAG),
    _layer("GRU", units=SIZES, return_sequences=st.just(True), reset_after=FLAG),
    _layer("SimpleRNN", units=SIZES, return_sequences=st.just(True)),
    _layer("bidirectional", units=SIZES),
    _layer("attention", num_heads=st.sampled_from([1, 2]), key_dim=SIZES, causal=FLAG),
]
CONVOLVED = [
    _layer("Conv1D", filters=SIZES, kernel_size=SIZES, padding=st.sampled_from(["same", "causal"])),
    _layer("DepthwiseConv1D", kernel_size=SIZES, padding=st.just("same"), depth_multiplier=SIZES),
    _layer("SeparableConv1D", filters=SIZES, kernel_size=SIZES, padding=st.just("same")),
    _layer("MaxPooling1D", pool_size=st.just(2), padding=st.just("same")),
    _layer("AveragePooling1D", pool_size=st.just(2), padding=st.just("same")),
]
STRIDES, SAME = st.sampled_from([1, 2, 3]), st.just("same")
IMAGES = [
    _layer("Conv2D", filters=SIZES, kernel_size=SIZES, strides=STRIDES, padding=SAME),
    _layer("Conv2D", filters=SIZES, kernel_size=SIZES, dilation_rate=STRIDES, padding=SAME),
    _layer("DepthwiseConv2D", kernel_size=SIZES, padding=SAME, depth_multiplier=SIZES),
    _layer("SeparableConv2D", filters=SIZES, kernel_size=SIZES, padding=SAME),
    _layer("Conv2DTranspose", filters=SIZES, kernel_size=SIZES, strides=STRIDES, padding=SAME),
    _layer("MaxPooling2D", pool_size=st.just(2), padding=SAME),
    _layer("AveragePooling2D", pool_size=st.just(2), padding=SAME),
    _layer("GroupNormalization", groups=st.just(1)),
]
KINDS = {
    "vector": (st.tuples(SIZES), ANYWHERE),
    "sequence": (st.tuples(SIZES, SIZES), ANYWHERE + SEQUENCES + CONVOLVED),
    "tokens": (st.tuples(SIZES), ANYWHERE + SEQUENCES),
    "image": (st.tuples(SIZES, SIZES, SIZES), ANYWHERE + IMAGES),
}
SHARED = {
    "weight_decay": st.sampled_from([None, 0.01]),
    "clipnorm": st.sampled_from([None, 0.5]),
    "use_ema": FLAG,
    "gradient_accumulation_steps": st.sampled_from([None, 2]),
}
OPTIMIZERS = [
    _layer("SGD", momentum=st.sampled_from([0.0, 0.9]), nesterov=FLAG, **SHARED),
    _layer("Adam", amsgrad=FLAG, **SHARED),
    _layer("RMSprop", centered=FLAG, momentum=st.sampled_from([0.0, 0.9]), **SHARED),
    *(
        _layer(name, **SHARED)
        for name in ("AdamW", "Adagrad", "Adadelta", "Adamax", "Nadam", "Ftrl", "Lion")
    ),
]
LOSSES = ["mse", "mae", "huber", "log_cosh", "binary_crossentropy", "categorical_crossentropy"]


@st.composite
def trainings(draw, policies=("float64", "float32", "mixed_bfloat16")) -> Drawn:
    """Trainings of every kind."""
    kind = draw(st.sampled_from(sorted(KINDS)))
    shape, choices = KINDS[kind]
    batch = draw(st.sampled_from([1, 2, 5]))
    feed = draw(st.sampled_from(["numpy", "dataset", "generator"]))
    # Keras takes no `class_weight` with a generator.
    weights = ["none", "sample"] if feed == "generator" else ["none", "sample", "class"]
    return Drawn(
        kind,
        draw(shape),
        draw(st.lists(st.one_of(choices), max_size=3)),
        draw(SIZES),
        draw(st.sampled_from(LOSSES)),
        draw(st.sampled_from(policies)),
        draw(st.one_of(OPTIMIZERS)),
        draw(st.sampled_from(weights)),
        feed,
        batch,
        draw(st.integers(1, batch)),
    )


def _added(x: Any, name: str, fields: dict[str, Any]) -> Any:
    if name == "residual":
        return layers.Add()([x, layers.Dense(x.shape[-1], activation="tanh")(x)])
    if name == "joined":
        return layers.Concatenate()([x, layers.Dense(2, activation="sigmoid")(x)])
    if name == "bidirectional":
        return layers.Bidirectional(layers.LSTM(fields["units"], return_sequences=True))(x)
    if name == "attention":
        sizes = {key: value for key, value in fields.items() if key != "causal"}
        return layers.MultiHeadAttention(**sizes)(x, x, use_causal_mask=fields["causal"])
    return getattr(layers, name)(**fields)(x)


def build(drawn: Drawn) -> keras.Model:
    """The compiled model, always with the same weights."""
    keras.utils.set_random_seed(5)
    with_policy, before = drawn.policy, keras.config.dtype_policy()
    keras.config.set_dtype_policy(with_policy)
    try:
        tokens = drawn.kind == "tokens"
        x = inputs = keras.Input(drawn.shape, dtype="int32" if tokens else None)
        if tokens:
            x = layers.Embedding(6, 3, mask_zero=True)(x)
        for name, fields in drawn.layers:
            x = _added(x, name, fields)
        if len(x.shape) > 2:
            x = layers.Flatten()(x) if drawn.kind == "image" else layers.GlobalAveragePooling1D()(x)
        last = "softmax" if drawn.loss == "categorical_crossentropy" else "sigmoid"
        outputs = layers.Dense(drawn.outputs, activation=last, dtype=_kept(drawn.policy))(x)
        model = keras.Model(inputs, outputs)
    finally:
        keras.config.set_dtype_policy(before)
    name, fields = drawn.optimizer
    fields = {key: value for key, value in fields.items() if value is not None}
    if name == "AdamW" and "weight_decay" not in fields:
        fields["weight_decay"] = 0.004
    model.compile(getattr(keras.optimizers, name)(0.01, **fields), drawn.loss)
    return built_early(model)


def _kept(policy: str) -> str:
    return "float64" if policy == "float64" else "float32"


@contextlib.contextmanager
def floatx_of(drawn: Drawn) -> Iterator[None]:
    """In this block Keras computes losses in float64, too, where a model is of float64."""
    before = keras.config.floatx()
    keras.config.set_floatx(_kept(drawn.policy))
    try:
        yield
    finally:
        keras.config.set_floatx(before)


def arrays(drawn: Drawn, batches: int) -> tuple[np.ndarray, ...]:
    """Inputs, targets and sample weights; the last batch is as long as its rest."""
    random = np.random.default_rng(6)
    count, dtype = (batches - 1) * drawn.batch + drawn.rest, _kept(drawn.policy)
    if drawn.kind == "tokens":
        x = random.integers(0, 6, (count, *drawn.shape)).astype("int32")
    else:
        x = random.normal(size=(count, *drawn.shape)).astype(dtype)
    y = np.eye(drawn.outputs, dtype=dtype)[random.integers(0, drawn.outputs, count)]
    return x, y, random.uniform(0.1, 2.0, count).astype(dtype)


def feed(drawn: Drawn, batches: int) -> dict[str, Any]:
    """What `fit` is given."""
    x, y, weights = arrays(drawn, batches)
    given = (x, y, weights) if drawn.weights == "sample" else (x, y)
    named: dict[str, Any] = {}
    if drawn.weights == "class" and drawn.outputs > 1:
        named["class_weight"] = {i: 0.5 + i for i in range(drawn.outputs)}
    if drawn.feed == "numpy":
        return (
            dict(zip(("x", "y", "sample_weight"), given, strict=False))
            | named
            | {"batch_size": drawn.batch}
        )
    dataset = tf.data.Dataset.from_tensor_slices(given).batch(drawn.batch)
    if drawn.feed == "dataset":
        return {"x": dataset} | named

    def endless():
        while True:
            yield from dataset.as_numpy_iterator()

    return {"x": endless(), "steps_per_epoch": batches} | named
