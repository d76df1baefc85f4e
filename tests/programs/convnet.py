"""A convolutional network on small images, as beginners write it: stripes, upright or lying."""

import keras
import numpy as np

keras.utils.set_random_seed(1)
rng = np.random.default_rng(1)
labels = rng.integers(0, 2, 1024)
phases = rng.uniform(0, 6.3, (1024, 1, 1))
waves = np.sin(np.arange(16)[None, None, :] * 1.3 + phases) * np.ones((1, 16, 1))
images = np.where(labels[:, None, None] == 1, waves.transpose(0, 2, 1), waves)
images = (images + rng.normal(0, 0.5, images.shape))[..., None].astype("float32")

model = keras.Sequential(
    [
        keras.Input((16, 16, 1)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(2, activation="softmax"),
    ]
)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(images[:896], labels[:896], 32, epochs=12, verbose=0)
print(*history.history["loss"])
print(model.evaluate(images[896:], labels[896:], verbose=0)[0])
