"""The smallest program with tfaccel: how many waves are there in a noisy line?"""

import _picture
import keras
import numpy as np

import tfaccel

keras.utils.set_random_seed(0)
random = np.random.default_rng(0)
waves = random.integers(2, 6, 4096)
turns = 2 * np.pi * (np.linspace(0, 1, 64) * waves[:, None] + random.uniform(0, 1, (4096, 1)))
lines = (np.sin(turns) + random.normal(0, 0.5, turns.shape))[..., None].astype("float32")
model = keras.Sequential([keras.layers.LSTM(64), keras.layers.Dense(6, "softmax")])
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
accel = tfaccel.AccelCallback()
model.fit(lines, waves, epochs=10, verbose=2, validation_split=0.2, callbacks=[accel])
accuracies = {name: model.history.history[name] for name in ("accuracy", "val_accuracy")}
_picture.show(accuracies, accel.report, "quickstart.png")
