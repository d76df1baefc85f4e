"""The ResNet8 of examples/image_classifier.py on scikit-learn's digits, by Keras alone.

Prints the loss and the seconds of each epoch, from one's beginning to that of the next.
"""

import pathlib
import sys
import time

import keras

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
import _datasets
import _networks

begun: list[float] = []


class Begun(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        begun.append(time.perf_counter())


keras.utils.set_random_seed(0)
images = _datasets.prepare("digits", _datasets.SOURCES["digits"](), image_size=24)
model = _networks.resnet(images.image_shape, images.classes, depth=8)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(*images.train, batch_size=64, epochs=40, verbose=0, callbacks=[Begun()])
losses = history.history["loss"]
for loss, start, end in zip(losses, begun, [*begun[1:], time.perf_counter()], strict=True):
    print(loss, end - start)
