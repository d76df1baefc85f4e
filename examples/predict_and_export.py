"""Faster predictions, saved and loaded again: are the stripes of an image upright or level?"""

import pathlib
import sys
import tempfile

import _picture
import keras
import numpy as np

import tfaccel

random = np.random.default_rng(0)
upright = random.integers(0, 2, 512)
waves = np.sin(np.arange(16) * random.uniform(1, 2, (512, 1)))[:, None, :, None]
images = np.where(upright[:, None, None, None], waves, waves.transpose(0, 2, 1, 3))
images = (images + random.normal(scale=0.3, size=(512, 16, 16, 1))).astype("float32")
keras.utils.set_random_seed(0)
norm = [keras.layers.Conv2D(8, 3), keras.layers.BatchNormalization(), keras.layers.ReLU()]
layers = [*norm, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1, "sigmoid")]
model = keras.Sequential([keras.Input((16, 16, 1)), *layers])
model.compile(keras.optimizers.Adam(0.02), "binary_crossentropy", metrics=["accuracy"])
model.fit(images, upright, epochs=5, verbose=2)

fast = tfaccel.accelerate(model, images[:32])  # prints what was tried, and what it won
folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="stripes-")
fast.save(folder)
loaded = tfaccel.load(folder)  # here, or in a process that has no Keras model
accuracy = {"accuracy": model.history.history["accuracy"]}
_picture.show(accuracy, fast.report, pathlib.Path(folder).with_suffix(".png"))
before, after = (one.predict(images, verbose=0) for one in (fast, loaded))
print(f"{folder} predicts with {loaded.plan}, as before: {np.array_equal(before, after)}")
