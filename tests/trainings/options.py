"""What `compile` and layers can be asked for."""

import keras
import tensorflow as tf
from keras import layers

from trainings.common import classes, net, numbers, pairs, training

optimizers = keras.optimizers


def _trained_by(make):
    """Trains a small network by such an optimizer, for two epochs and one more."""

    def run(folder):
        model = net()
        model.compile(make(), "mse")
        x, y = pairs()
        histories = [model.fit(x, y, batch_size=8, epochs=n, verbose=0) for n in (2, 1)]
        return [model], histories

    return run


def _schedule():
    return optimizers.schedules.CosineDecay(0.01, 12, warmup_target=0.02, warmup_steps=3)


# Every optimizer of Keras, and every option that optimizers share.
OPTIMIZERS = {
    "sgd_nesterov_clipnorm": lambda: optimizers.SGD(0.05, 0.9, nesterov=True, clipnorm=0.5),
    "rmsprop_centered_momentum": lambda: optimizers.RMSprop(0.01, momentum=0.5, centered=True),
    "adam_amsgrad_global_clipnorm": lambda: optimizers.Adam(
        0.01, amsgrad=True, global_clipnorm=0.5
    ),
    "adamw_schedule_clipvalue": lambda: optimizers.AdamW(
        _schedule(), weight_decay=0.01, clipvalue=0.1
    ),
    "adadelta": lambda: optimizers.Adadelta(1.0),
    "adagrad_weight_decay": lambda: optimizers.Adagrad(0.1, weight_decay=0.01),
    "adamax": lambda: optimizers.Adamax(0.01),
    "adafactor": lambda: optimizers.Adafactor(0.01),
    "nadam_ema": lambda: optimizers.Nadam(
        0.01, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=4
    ),
    "ftrl": lambda: optimizers.Ftrl(0.1, l1_regularization_strength=0.01),
    "lion": lambda: optimizers.Lion(1e-3),
    "lamb": lambda: optimizers.Lamb(0.01),
    "loss_scale_factor": lambda: optimizers.SGD(0.05, momentum=0.9, loss_scale_factor=8.0),
    "loss_scale_optimizer": lambda: optimizers.LossScaleOptimizer(
        optimizers.Adam(0.01), initial_scale=4.0, dynamic_growth_steps=5
    ),
    "accumulation": lambda: optimizers.Adam(0.01, gradient_accumulation_steps=4),
    "accumulation_clipped_ema": lambda: optimizers.AdamW(
        0.01, gradient_accumulation_steps=3, global_clipnorm=1.0, use_ema=True
    ),
}
if hasattr(optimizers, "Muon"):
    OPTIMIZERS["muon"] = lambda: optimizers.Muon(0.01)
if hasattr(optimizers, "ScheduleFreeAdamW"):
    OPTIMIZERS["schedule_free"] = lambda: optimizers.ScheduleFreeAdamW(0.01)


def _named(name, run):
    run.__name__ = name
    return run


# Signs of numbers near zero turn over by rounding, and a step by a sign is as large as any.
_BY_SIGN = {"lion": 0.05}
for _name, _make in OPTIMIZERS.items():
    training(rtol=_BY_SIGN.get(_name, 2e-3))(_named(_name, _trained_by(_make)))


@training()
def lora(folder):
    """Adapters on a dense layer and an embedding, after a first training without them."""
    tokens, y = classes(48, 20, 5), classes(48, 3)
    embedding, dense = layers.Embedding(20, 8), layers.Dense(8, activation="gelu")
    inputs = keras.Input((5,), dtype="int32")
    x = dense(layers.Flatten()(embedding(inputs)))
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    histories = []
    for adapted in (False, True):
        if adapted:
            embedding.enable_lora(2)
            dense.enable_lora(2)
        model.compile("adam", "sparse_categorical_crossentropy")
        histories.append(model.fit(tokens, y, batch_size=8, epochs=2, verbose=0))
    model.save_weights(folder / "adapted.weights.h5")
    return [model], histories


@training()
def quantized_layers(folder):
    """Layers in int8, of which only adapters and what comes after are trained."""
    model = net(12)
    model.layers[0].quantize("int8")
    model.layers[0].enable_lora(2)
    model.compile("adam", "mse")
    return [model], [model.fit(*pairs(), batch_size=8, epochs=2, verbose=0)]


@training()
def several_steps_an_execution(folder):
    model = net()
    model.compile("adam", "mse", metrics=["mae"], steps_per_execution=4)
    x, y = pairs(88)
    history = model.fit(x, y, batch_size=8, epochs=2, validation_split=0.25, verbose=0)
    return [model], [history]


@training(quick=True)
def eagerly(folder):
    model = net()
    model.compile("sgd", "mse", run_eagerly=True)
    return [model], [model.fit(*pairs(), batch_size=16, epochs=2, verbose=0)]


@training()
def compiled_by_xla(folder):
    model = net()
    model.compile("adam", "mse", jit_compile=True)
    return [model], [model.fit(*pairs(), batch_size=8, epochs=2, verbose=0)]


def _image_net():
    x = inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3, activation="relu")(x))
    return keras.Model(inputs, layers.Dense(3, activation="softmax", dtype="float32")(x))


def _under_policy(policy):
    def run(folder):
        keras.config.set_dtype_policy(policy)
        model = _image_net()
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        x, y = numbers(48, 8, 8, 1), classes(48, 3)
        history = model.fit(x, y, batch_size=8, epochs=2, validation_split=0.25, verbose=0)
        return [model], [history]

    return _named(policy, run)


training(rtol=0.1)(_under_policy("mixed_bfloat16"))
training(rtol=0.1)(_under_policy("mixed_float16"))
training(rtol=2e-3)(_under_policy("float64"))


@training()
def fine_tuning(folder):
    """The head alone; then all of it, compiled anew with a lower rate."""
    base = keras.Sequential(
        [keras.Input((4,)), layers.Dense(8, activation="silu"), layers.BatchNormalization()]
    )
    base.trainable = False
    inputs = keras.Input((4,))
    model = keras.Model(inputs, layers.Dense(1)(base(inputs, training=False)))
    histories = []
    for trainable, rate in ((False, 0.1), (True, 0.01)):
        base.trainable = trainable
        model.compile(optimizers.SGD(rate, momentum=0.9), "mse")
        histories.append(model.fit(*pairs(), batch_size=8, epochs=2, verbose=0))
    return [model], histories


class Nearby(keras.metrics.Metric):
    """The share of predictions that are near."""

    def __init__(self, within=0.5, **kwargs):
        super().__init__(**kwargs)
        self.within = within
        self.near = self.add_weight(shape=(), initializer="zeros", name="near")
        self.all = self.add_weight(shape=(), initializer="zeros", name="all")

    def update_state(self, y_true, y_pred, sample_weight=None):
        hits = tf.cast(tf.abs(y_true - y_pred) < self.within, self.dtype)
        self.near.assign_add(tf.reduce_sum(hits))
        self.all.assign_add(tf.cast(tf.size(hits), self.dtype))

    def result(self):
        return self.near / (self.all + keras.config.epsilon())


@training()
def metrics_of_all_kinds(folder):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(6, "gelu"), layers.Dense(1)])
    metrics = [Nearby(name="nearby"), "mae", keras.metrics.R2Score(), lambda y, p: tf.abs(p[0, 0])]
    model.compile(optimizers.SGD(0.05, momentum=0.9), "mse", metrics=metrics)
    history = model.fit(*pairs(), batch_size=8, epochs=2, validation_split=0.25, verbose=0)
    return [model], [history]
