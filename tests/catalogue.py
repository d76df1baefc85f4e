"""Models and ways of feeding them, and a workload for each pass: what the laws are checked on.

`FITS` covers the kinds of model and feed that Keras users have. `PASS_ROWS` has one
row a pass, for training and for predictions; a test fails when a pass has none.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from early import built_early, targets
from inference_models import image_model, numbers

from tfaccel.core.plan import Pass
from tfaccel.core.workload import Workload
from tfaccel.passes import (
    XLA,
    ExactReductions,
    FoldedNorm,
    FrozenWeights,
    FullPrecision,
    FusedActivation,
    FusedAttention,
    FusedNorm,
    FusedOptimizer,
    FusedRNN,
    Kernels,
    Layout,
    MixedPrecision,
    Recompute,
    StepBatching,
)
from tfaccel.steps.snapshot import build_all
from tfaccel.system.device import Device

layers = keras.layers


@dataclasses.dataclass(frozen=True)
class Fit:
    """A compiled model and the arguments of its `fit`."""

    name: str
    make: Callable[[], tuple[keras.Model, dict[str, Any]]]


def _arrays(count: int, *shape: int, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(count, *shape)).astype("float32"), rng.integers(0, classes, count)


def _dense_from_numpy():
    model = keras.Sequential([layers.Dense(8, activation="relu"), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=["accuracy"])
    x, y = _arrays(45, 6)
    return model, {"x": x, "y": y, "batch_size": 8, "epochs": 2}


def images_from_tf_data():
    x = inputs = keras.Input((8, 8, 2))
    x = layers.Conv2D(4, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    # Pooling with the channels first runs on every device.
    x = layers.MaxPooling2D(2, data_format="channels_first")(layers.Permute((3, 1, 2))(x))
    x = layers.GlobalAveragePooling2D(data_format="channels_first")(layers.Dropout(0.3)(x))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices(_arrays(42, 8, 8, 2)).shuffle(42, seed=3).batch(8)
    return model, {"x": data, "epochs": 2, "validation_data": data}


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.hidden = layers.Dense(8, activation="tanh")
        self.norm = layers.BatchNormalization()
        self.head = layers.Dense(1)

    def call(self, inputs, training=False):
        return self.head(self.norm(self.hidden(inputs), training=training))


class _Batches(keras.utils.PyDataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        rng = np.random.default_rng(index)
        return rng.normal(size=(7, 5)).astype("float32"), rng.normal(size=(7, 1)).astype("float32")


def _subclassed_from_py_dataset():
    model = Subclassed()
    model.compile(keras.optimizers.RMSprop(0.01), "mse")
    return model, {"x": _Batches(), "epochs": 2, "shuffle": False}


def several_inputs_and_outputs():
    a, b = keras.Input((4,), name="a"), keras.Input((3,), name="b")
    joined = layers.Concatenate()([layers.Dense(5)(a), layers.Dense(5)(b)])
    outputs = {"u": layers.Dense(1, name="u")(joined), "v": layers.Dense(2, name="v")(joined)}
    model = keras.Model({"a": a, "b": b}, outputs)
    model.compile(
        keras.optimizers.SGD(1e-2, momentum=0.9, clipnorm=1.0),
        {"u": "mse", "v": "mae"},
        loss_weights={"u": 1.0, "v": 0.5},
        metrics={"u": ["mae"]},
    )
    rng = np.random.default_rng(0)

    def make(*shape):
        return rng.normal(size=shape).astype("float32")

    x, y = {"a": make(40, 4), "b": make(40, 3)}, {"u": make(40, 1), "v": make(40, 2)}
    return model, {
        "x": x,
        "y": y,
        "sample_weight": {"u": np.abs(make(40)), "v": np.ones(40)},
        "epochs": 3,
    }


class CustomStep(keras.Model):
    """A train_step of the user's own, with its own loss and metric."""

    def __init__(self):
        super().__init__()
        self.core = layers.Dense(4)
        self.seen = keras.metrics.Mean(name="seen_loss")

    @property
    def metrics(self):
        return [self.seen]

    def call(self, inputs):
        return self.core(inputs)

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(self(x, training=True) - y))
            loss = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.seen.update_state(loss)
        return {"seen_loss": self.seen.result()}


def _custom_step_from_generator():
    def batches():
        rng = np.random.default_rng(1)
        while True:
            yield (
                rng.normal(size=(6, 3)).astype("float32"),
                rng.normal(size=(6, 4)).astype("float32"),
            )

    model = CustomStep()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True))
    return model, {"x": batches(), "steps_per_epoch": 7, "epochs": 2}


def _masked_text():
    rng = np.random.default_rng(2)
    tokens = rng.integers(0, 20, size=(30, 9))
    tokens[:, 6:] = 0
    model = keras.Sequential(
        [
            keras.Input((9,), dtype="int32"),
            layers.Embedding(20, 6, mask_zero=True),
            layers.LSTM(5, dropout=0.2),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    model.compile(optimizer, "binary_crossentropy", metrics=["accuracy"])
    return model, {"x": tokens, "y": rng.integers(0, 2, 30), "batch_size": 4, "epochs": 1}


def several_steps_an_execution():
    model = keras.Sequential(
        [keras.Input((6,)), layers.Dense(8, activation="relu"), layers.Dense(1)]
    )
    model.compile("adam", "mse", steps_per_execution=3)
    x, y = _arrays(80, 6)
    return model, {"x": x, "y": y, "batch_size": 4, "epochs": 2}


def _frozen_and_regularised():
    base = keras.Sequential([keras.Input((6,)), layers.Dense(6), layers.BatchNormalization()])
    base.trainable = False
    model = keras.Sequential([base, layers.Dense(3, kernel_regularizer="l2", activation="softmax")])
    schedule = keras.optimizers.schedules.ExponentialDecay(0.01, 5, 0.5)
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=1e-3, use_ema=True)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    x, y = _arrays(50, 6)
    return model, {
        "x": x,
        "y": y,
        "class_weight": {0: 1.0, 1: 2.0, 2: 0.5},
        "validation_split": 0.2,
        "batch_size": 8,
        "epochs": 2,
    }


def _unknown_length():
    def batches():
        rng = np.random.default_rng(1)
        for _ in range(6):
            yield (
                rng.normal(size=(5, 4)).astype("float32"),
                rng.normal(size=(5, 1)).astype("float32"),
            )

    spec = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 1)))
    data = tf.data.Dataset.from_generator(batches, output_signature=spec)
    model = keras.Sequential([layers.Dense(4, activation="gelu"), layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9, gradient_accumulation_steps=2)
    model.compile(optimizer, "mse")
    return model, {"x": data, "epochs": 3}


def _infinite():
    model = keras.Sequential([layers.Dense(4), layers.GaussianNoise(0.1), layers.Dense(1)])
    model.compile("adagrad", "mse")
    x, y = _arrays(20, 4)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4, drop_remainder=True).repeat()
    return model, {"x": data, "steps_per_epoch": 6, "epochs": 2}


FITS: tuple[Fit, ...] = tuple(
    Fit(make.__name__.strip("_"), make)
    for make in (
        _dense_from_numpy,
        images_from_tf_data,
        _subclassed_from_py_dataset,
        several_inputs_and_outputs,
        _custom_step_from_generator,
        _masked_text,
        several_steps_an_execution,
        _frozen_and_regularised,
        _unknown_length,
        _infinite,
    )
)


def results(fit: Fit, *callbacks: keras.callbacks.Callback) -> tuple[list[np.ndarray], list[Any]]:
    """Every variable after a fit, and its History, from the same seed each time."""
    keras.utils.set_random_seed(11)
    model, arguments = fit.make()
    if not callbacks and model.built:
        built_early(model, targets(**arguments))
    history = model.fit(**arguments, verbose=0, callbacks=list(callbacks))
    variables = [v.numpy() for v in [*model.variables, *model.optimizer.variables]]
    return variables, list(history.history.values())


@functools.cache
def stock_results(fit: Fit) -> tuple[list[np.ndarray], list[Any]]:
    """Keras by itself; several laws compare with the same training."""
    return results(fit)


def image_workload(device: Device | None = None) -> Workload:
    """A small image model that every pass can serve, after one step."""
    model, arguments = images_from_tf_data()
    data = arguments["x"]
    build_all(model, data.element_spec)
    # Statistics at their first values make much of the rounding to 16 bits.
    model.fit(data.take(1), verbose=0)
    batch = next(iter(data))
    return Workload(model, (batch,), data.element_spec, **({"device": device} if device else {}))


def reduced_workload() -> Workload:
    """A small image model in bfloat16, on a chip that has no instructions for it."""
    device = Device("CPU", "a chip without 16 bits")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return image_workload(device)
    finally:
        keras.config.set_dtype_policy("float32")


def sequence_workload() -> Workload:
    """A small recurrent model on sequences with a mask, with all its variables."""
    model, arguments = _masked_text()
    data = tf.data.Dataset.from_tensor_slices((arguments["x"], arguments["y"])).batch(4)
    build_all(model, data.element_spec)
    return Workload(model, (next(iter(data)),), data.element_spec)


def attention_workload() -> Workload:
    """A small transformer on sequences with a mask, with all its variables."""
    tokens = keras.Input((9,), dtype="int32")
    x = layers.Embedding(20, 6, mask_zero=True)(tokens)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 3, dropout=0.2)(x, x)])
    x = layers.Dense(6, activation="gelu")(layers.LayerNormalization()(x))
    model = keras.Model(tokens, layers.Dense(1)(layers.GlobalAveragePooling1D()(x)))
    model.compile("sgd", "mse")
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 20, (8, 9)), rng.normal(size=(8, 1)).astype("float32")
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
    build_all(model, data.element_spec)
    return Workload(model, (next(iter(data)),), data.element_spec)


def prediction_workload() -> Workload:
    """A small image model that only predicts, after one prediction."""
    model = image_model()
    model.predict(numbers(8, 8, 3), verbose=0)
    return Workload(model, training=False)


def _smooth(inputs: Any, outputs: Any) -> Workload:
    """A model of layers with derivatives of every order, and a batch, nothing run yet."""
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse")
    rng = np.random.default_rng(8)
    for weight in model.trainable_variables:
        weight.assign(rng.uniform(-0.5, 0.5, weight.shape) + (weight.name == "gamma"))
    x = rng.normal(size=(5, *inputs.shape[1:])).astype("float32")
    y = rng.normal(size=(5, *outputs.shape[1:])).astype("float32")
    batch, spec = (tf.constant(x), tf.constant(y)), (tf.TensorSpec((None, *x.shape[1:])),) * 2
    return Workload(model, (batch,), spec, device=Device("CPU", "a chip without 16 bits"))


def smooth_workload(policy: str = "float32") -> Workload:
    """A small model that is smooth, with a layer for most passes."""
    keras.config.set_dtype_policy(policy)
    try:
        x = inputs = keras.Input((2, 2, 2))
        x = layers.Conv2D(3, 2, padding="same", use_bias=False)(x)
        x = layers.Activation("silu")(layers.BatchNormalization()(x))
        x = layers.AveragePooling2D(1, data_format="channels_first")(layers.Permute((3, 1, 2))(x))
        x = layers.LayerNormalization()(layers.Reshape((3, 4))(x))
        return _smooth(inputs, layers.Dense(2)(layers.Flatten()(x)))
    finally:
        keras.config.set_dtype_policy("float32")


def smooth_with_attention() -> Workload:
    """A layer that attends; with the others it would be most of what is traced for each pass."""
    inputs = keras.Input((3, 4))
    x = layers.Dense(4, activation="gelu")(inputs)
    x = layers.MultiHeadAttention(2, 2, use_bias=False)(x, x)
    return _smooth(inputs, layers.Dense(2)(layers.Flatten()(x)))


def smooth_in_16_bits() -> Workload:
    """The same in bfloat16."""
    return smooth_workload("mixed_bfloat16")


def smooth_and_recurrent() -> Workload:
    """A recurrent layer; unrolled, as Keras's own loop takes ten times as long to trace."""
    inputs = keras.Input((2, 2))
    return _smooth(inputs, layers.Dense(1)(layers.LSTM(2, unroll=True)(inputs)))


@dataclasses.dataclass(frozen=True)
class PassRow:
    """A pass as the laws are checked on it: with fields that serve its workload."""

    item: Pass
    workload: Callable[[], Workload] = image_workload
    # What derivatives of every order are checked on; nothing where there are none.
    smooth: Callable[[], Workload] | None = smooth_workload


PASS_ROWS: tuple[PassRow, ...] = (
    PassRow(FusedNorm(loops=True)),
    PassRow(FusedAttention(), attention_workload, smooth_with_attention),
    PassRow(FusedActivation(), attention_workload, smooth_with_attention),
    PassRow(FusedOptimizer()),
    PassRow(FusedRNN(), sequence_workload, smooth_and_recurrent),
    PassRow(FullPrecision(), reduced_workload, smooth_in_16_bits),
    PassRow(MixedPrecision("bfloat16")),
    PassRow(ExactReductions(), reduced_workload, smooth_in_16_bits),
    PassRow(Layout()),
    PassRow(Recompute()),
    PassRow(XLA()),
    PassRow(Kernels()),
    PassRow(StepBatching(steps=4)),
    PassRow(FoldedNorm(), prediction_workload, None),
    PassRow(FrozenWeights(), prediction_workload, None),
)
