"""The smallest program with tfaccel: which points of a square lie inside a circle?"""

import keras
import numpy as np

import tfaccel

points = np.random.default_rng(0).uniform(-1, 1, (4096, 2)).astype("float32")
inside = (np.hypot(points[:, 0], points[:, 1]) < 0.8).astype("float32")
keras.utils.set_random_seed(0)
layers = [keras.layers.Dense(64, "relu"), keras.layers.Dense(64, "relu")]
model = keras.Sequential([*layers, keras.layers.Dense(1, "sigmoid")])
model.compile("adam", "binary_crossentropy", metrics=["accuracy"])
accel = tfaccel.AccelCallback()
model.fit(points, inside, epochs=8, verbose=2, validation_split=0.2, callbacks=[accel])
