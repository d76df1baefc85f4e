"""The next value of a noisy wave by an LSTM, in a loop of fits of one epoch each."""

import keras
import numpy as np

keras.utils.set_random_seed(4)
rng = np.random.default_rng(4)
series = (np.sin(np.arange(1200) / 7) + rng.normal(0, 0.1, 1200)).astype("float32")
windows = np.lib.stride_tricks.sliding_window_view(series, 25)
inputs, targets = windows[:, :24, None], windows[:, 24:]

model = keras.Sequential([keras.Input((24, 1)), keras.layers.LSTM(16), keras.layers.Dense(1)])
model.compile("adam", "mse")
for _ in range(6):
    print(*model.fit(inputs, targets, batch_size=32, shuffle=False, verbose=0).history["loss"])
