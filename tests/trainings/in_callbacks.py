"""Callbacks that do things to the training that they are in, and fits around fits."""

import contextlib
import threading

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from trainings.common import net, numbers, pairs, training

callbacks = keras.callbacks
GIVEN = {"batch_size": 8, "verbose": 0}


class Midst(callbacks.Callback):
    """Evaluates, predicts, saves, writes a weight and sets the rate while the fit goes on."""

    def __init__(self, folder):
        super().__init__()
        self.folder, self.found = folder, {"loss": [], "mean": [], "rate": []}

    def on_train_batch_end(self, batch, logs=None):
        if batch == 2:
            self.found["mean"].append(float(self.model.predict(np.ones((3, 4)), verbose=0).mean()))
            self.found["rate"].append(float(self.model.optimizer.learning_rate))

    def on_epoch_end(self, epoch, logs=None):
        self.found["loss"].append(self.model.evaluate(*pairs(16), verbose=0))
        self.model.save(self.folder / f"{epoch}.keras")
        self.model.optimizer.learning_rate = 0.05 / (epoch + 2)
        bias = self.model.layers[-1].bias
        bias.assign(bias * 0.5)


@training()
def midst_of_fit(folder):
    model, midst = net(), Midst(folder)
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    history = model.fit(*pairs(), epochs=3, callbacks=[midst], **GIVEN)
    again = keras.models.load_model(folder / "2.keras")
    return [model, again], [history, midst.found]


class Recompiles(callbacks.Callback):
    """Freezes a layer and compiles the model anew, in the midst of the fit."""

    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            self.model.layers[0].trainable = False
            self.model.compile(keras.optimizers.SGD(0.02), "mae")
            # Keras goes on with the function that it holds; without one it fails.
            self.model.make_train_function()


@training()
def recompiled_in_the_midst(folder):
    model = net()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    history = model.fit(*pairs(), epochs=4, callbacks=[Recompiles()], **GIVEN)
    return [model], [history, model.fit(*pairs(), epochs=1, **GIVEN)]


class Stops(callbacks.Callback):
    """Stops at a batch, by Keras's own flag."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3 and int(self.model.optimizer.iterations) > 8:
            self.model.stop_training = True


@training(quick=True)
def stopped(folder):
    """At a batch; then early, with the best weights restored."""
    model = net()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    first = model.fit(*pairs(), epochs=4, callbacks=[Stops()], **GIVEN)
    early = callbacks.EarlyStopping("val_loss", patience=1, restore_best_weights=True)
    held = (numbers(16, 4, seed=3), numbers(16, 1, seed=4))
    second = model.fit(*pairs(), epochs=8, validation_data=held, callbacks=[early], **GIVEN)
    return [model], [first, second]


class Breaks(callbacks.Callback):
    """Fails once, as a machine that goes away does."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@training(quick=True)
def backed_up_and_restored(folder):
    """Interrupted after two epochs, and gone on with by another model."""
    models, histories = [], []
    for interrupted in (True, False):
        model = net()
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
        kept = callbacks.BackupAndRestore(folder / "backup", delete_checkpoint=False)
        others = [Breaks()] if interrupted else []
        with contextlib.suppress(KeyboardInterrupt):
            histories.append(model.fit(*pairs(), epochs=4, callbacks=[kept, *others], **GIVEN))
        models.append(model)
    return models, histories


@training()
def schedules_and_files(folder):
    model = net()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    given = [
        callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.7),
        callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=10.0),
        callbacks.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
        callbacks.ModelCheckpoint(folder / "best.keras", "val_loss", save_best_only=True),
        callbacks.CSVLogger(folder / "log.csv"),
        callbacks.TerminateOnNaN(),
    ]
    history = model.fit(*pairs(), epochs=4, validation_split=0.25, callbacks=given, **GIVEN)
    return [model], [history]


@training()
def swapped_averages(folder):
    """Weights are the averages while validation runs and when the fit is over."""
    model = net()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9, use_ema=True, ema_momentum=0.9), "mse")
    swap = callbacks.SwapEMAWeights(swap_on_epoch=True)
    history = model.fit(*pairs(), epochs=3, validation_split=0.25, callbacks=[swap], **GIVEN)
    return [model], [history]


@training()
def fits_in_a_loop(folder):
    """Folds, each with a model of its own, and short fits of one epoch with other data."""
    x, y = pairs()
    models, histories = [], []
    for fold in range(3):
        keras.utils.set_random_seed(fold)
        model = net()
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
        held = np.arange(len(x)) % 3 == fold
        for epoch in range(3):
            given = {"initial_epoch": epoch, "epochs": epoch + 1, **GIVEN}
            histories.append(model.fit(x[~held], y[~held], **given))
        histories.append({"loss": [model.evaluate(x[held], y[held], verbose=0)]})
        models.append(model)
    return models, histories


@training()
def a_fit_within_a_fit(folder):
    """A callback trains a probe on the outputs of the model that is being trained."""
    model, probe, found = net(outputs=3), net(width=3), []
    for one in (model, probe):
        one.compile(keras.optimizers.SGD(0.01, momentum=0.5), "mse")
    x, y = pairs()

    def train_probe(epoch, logs):
        outputs = model.predict(x, verbose=0)
        found.append(probe.fit(outputs, y, shuffle=False, **GIVEN))

    inner = callbacks.LambdaCallback(on_epoch_end=train_probe)
    history = model.fit(x, np.tile(y, 3), epochs=2, callbacks=[inner], shuffle=False, **GIVEN)
    return [model, probe], [history, *found]


@training()
def fits_in_threads(folder):
    """Two models at a time, each in a thread of its own."""
    models = [net(), net(6)]
    for model in models:
        model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    found = {}

    def train(index):
        found[index] = models[index].fit(*pairs(), epochs=3, shuffle=False, **GIVEN)

    threads = [threading.Thread(target=train, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return models, [found[0], found[1]]


@training()
def by_batch_between_fits(folder):
    """`train_on_batch`, a loop of one's own and `fit`, in turns, with one optimizer."""
    model = net()
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    (x, y), histories = pairs(), []
    for _ in range(2):
        histories.append(model.fit(x, y, epochs=2, **GIVEN))
        histories.append({"loss": [model.train_on_batch(x[:8], y[:8])]})
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(x, training=True) - y) ** 2)
        weights = model.trainable_variables
        model.optimizer.apply(tape.gradient(loss, weights), weights)
    return [model], histories


@training()
def cloned_and_shared(folder):
    """A layer in two models that are trained in turns, and a clone of one of them."""
    shared = layers.Dense(6, activation="gelu")
    first, second = (
        keras.Sequential([keras.Input((4,)), shared, layers.Dense(1)]) for _ in range(2)
    )
    clone = keras.models.clone_model(first)
    histories = []
    for model in (first, second, clone, first):
        if not model.compiled:
            model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
        histories.append(model.fit(*pairs(), epochs=2, **GIVEN))
    return [first, second, clone], histories
