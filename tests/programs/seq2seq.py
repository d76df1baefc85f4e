"""Sequence to sequence by two LSTMs: a row of digits is said backwards."""

import keras
import numpy as np
from keras import layers

DIGITS, LENGTH, WIDTH = 10, 8, 64
START = DIGITS

keras.utils.set_random_seed(8)
rng = np.random.default_rng(8)
said = rng.integers(0, DIGITS, (2560, LENGTH))
backwards = said[:, ::-1]
begun = np.concatenate([np.full((len(said), 1), START), backwards[:, :-1]], axis=1)

encoder_inputs = keras.Input((None,), dtype="int32")
embedded = layers.Embedding(DIGITS, WIDTH)(encoder_inputs)
_, *states = layers.LSTM(WIDTH, return_state=True)(embedded)
decoder_inputs = keras.Input((None,), dtype="int32")
embedded = layers.Embedding(DIGITS + 1, WIDTH)(decoder_inputs)
decoder = layers.LSTM(WIDTH, return_sequences=True, return_state=True)
decoded, _, _ = decoder(embedded, initial_state=states)
outputs = layers.Dense(DIGITS, activation="softmax")(decoded)
model = keras.Model([encoder_inputs, decoder_inputs], outputs)
model.compile(
    keras.optimizers.RMSprop(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
)
history = model.fit([said, begun], backwards, 64, epochs=10, validation_split=0.1, verbose=0)
print(*history.history["loss"])
