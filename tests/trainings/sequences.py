"""Recurrent models, masks, CTC, and input of other kinds than arrays of one shape."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from trainings.common import classes, net, numbers, pairs, training


@training()
def stateful_rnn(folder):
    """States go on from batch to batch, and are reset after each epoch."""
    layer = layers.LSTM(8, stateful=True, return_sequences=True)
    inputs = keras.Input(batch_shape=(4, 6, 2))
    model = keras.Model(inputs, layers.Dense(1)(layers.GRU(6, stateful=True)(layer(inputs))))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    x, histories = numbers(48, 6, 2), []
    for _ in range(3):
        histories.append(model.fit(x, x.sum(axis=(1, 2)), batch_size=4, shuffle=False, verbose=0))
        layer.reset_state()
    return [model], histories


@training(draws=True)
def bidirectional_with_masks(folder):
    tokens = classes(48, 12, 9)
    tokens[:, 6:] = 0
    x = inputs = keras.Input((None,), dtype="int32")
    x = layers.Embedding(12, 6, mask_zero=True)(x)
    x = layers.Bidirectional(layers.LSTM(5, return_sequences=True, recurrent_dropout=0.1))(x)
    x = layers.Bidirectional(layers.GRU(5), merge_mode="sum")(x)
    model = keras.Model(inputs, layers.Dense(3, activation="softmax")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    history = model.fit(tokens, classes(48, 3), batch_size=8, epochs=2, verbose=0)
    return [model], [history]


@training()
def ctc(folder):
    """Speech to letters, with padded labels of several lengths."""
    inputs = keras.Input((20, 6))
    x = layers.Conv1D(8, 3, padding="same", activation="relu")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Bidirectional(layers.GRU(6, return_sequences=True))(x)
    model = keras.Model(inputs, layers.Dense(6)(x))
    model.compile("adam", keras.losses.CTC())
    labels = 1 + classes(32, 5, 7)
    labels[np.arange(32) % 2 == 0, 5:] = 0
    return [model], [model.fit(numbers(32, 20, 6), labels, batch_size=8, epochs=2, verbose=0)]


@training(draws=True)
def several_inputs_outputs_and_masks(folder):
    words = keras.Input((8,), dtype="int32", name="words")
    facts = keras.Input((4,), name="facts")
    x = layers.Embedding(15, 8, mask_zero=True)(words)
    x = layers.Add()([x, layers.MultiHeadAttention(2, 4, dropout=0.1)(x, x)])
    x = layers.LayerNormalization()(x)
    tags = layers.Dense(4, activation="softmax", name="tags")(x)
    pooled = layers.GlobalAveragePooling1D()(x)
    score = layers.Dense(1, name="score")(layers.Concatenate()([pooled, facts]))
    model = keras.Model([words, facts], {"tags": tags, "score": score})
    model.compile(
        keras.optimizers.Adam(1e-3, clipnorm=1.0),
        {"tags": "sparse_categorical_crossentropy", "score": "mse"},
        loss_weights={"tags": 0.3, "score": 1.0},
        metrics={"tags": ["accuracy"], "score": ["mae"]},
        weighted_metrics={"score": ["mse"]},
    )
    x = {"words": classes(48, 15, 8), "facts": numbers(48, 4)}
    y = {"tags": classes(48, 4, 8), "score": numbers(48, 1)}
    weights = {"tags": np.ones((48, 8)), "score": np.abs(numbers(48))}
    history = model.fit(
        x, y, sample_weight=weights, batch_size=8, epochs=2, validation_split=0.25, verbose=0
    )
    return [model], [history]


class OfRagged(keras.Model):
    """The mean embedding of texts of all lengths."""

    def __init__(self):
        super().__init__()
        self.embedding = layers.Embedding(20, 6)
        self.hidden, self.out = layers.Dense(8, activation="gelu"), layers.Dense(2)

    def call(self, texts):
        vectors = self.embedding(texts.flat_values)
        sums = tf.math.segment_sum(vectors, texts.value_rowids())
        lengths = tf.cast(texts.row_lengths(), sums.dtype)[:, None]
        return self.out(self.hidden(sums / lengths))


@training()
def ragged_inputs(folder):
    rows = [classes(1 + seed % 5, 20, seed=seed).tolist() for seed in range(48)]
    texts = tf.ragged.constant(rows, dtype=tf.int32)
    model = OfRagged()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"])
    data = tf.data.Dataset.from_tensor_slices((texts, classes(48, 2))).batch(8)
    return [model], [model.fit(data, epochs=3, verbose=0)]


@training()
def sparse_inputs(folder):
    dense = numbers(48, 30) * (numbers(48, 30, seed=4) > 1)
    inputs = keras.Input((30,), sparse=True)
    x = layers.Dense(8, activation="silu")(inputs)
    model = keras.Model(inputs, layers.Dense(1)(x))
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9), "mse")
    y = dense.sum(axis=1, keepdims=True)
    data = tf.data.Dataset.from_tensor_slices((tf.sparse.from_dense(dense), y)).batch(8)
    return [model], [model.fit(data, epochs=3, verbose=0)]


class Shuffled(keras.utils.PyDataset):
    """Batches of two sizes, mixed anew after each epoch, with weights."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.rng, (self.x, self.y) = np.random.default_rng(5), pairs(46)
        self.on_epoch_end()

    def __len__(self):
        return 6

    def __getitem__(self, index):
        chosen = self.order[index * 8 : (index + 1) * 8]
        return self.x[chosen], self.y[chosen], 1 + self.x[chosen, 0] ** 2

    def on_epoch_end(self):
        self.order = self.rng.permutation(46)


@training()
def py_dataset(folder):
    model = net()
    model.compile("adam", "mse", weighted_metrics=["mae"])
    return [model], [model.fit(Shuffled(), epochs=3, shuffle=False, verbose=0)]


@training()
def generators(folder):
    """Of batches, one that ends and one that never does, with steps_per_epoch."""

    def batches(seed):
        while True:
            x = numbers(8, 4, seed=seed)
            yield x, x.sum(axis=1, keepdims=True)
            seed += 1

    model = net()
    model.compile("adam", "mse")
    first = model.fit(
        batches(0),
        steps_per_epoch=7,
        epochs=2,
        validation_data=batches(99),
        validation_steps=2,
        verbose=0,
    )
    ending = (batch for batch, _ in zip(batches(50), range(12), strict=False))
    second = model.fit(ending, verbose=0)
    return [model], [first, second]


@training()
def class_and_sample_weights(folder):
    model = net(outputs=3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss, metrics=["accuracy"], weighted_metrics=["accuracy"])
    x, y = numbers(48, 4), classes(48, 3)
    given = {"batch_size": 8, "epochs": 2, "verbose": 0}
    first = model.fit(x, y, class_weight={0: 1.0, 1: 3.0, 2: 0.2}, **given)
    held = (x, y, np.ones(48))
    weights = np.abs(numbers(48, seed=7))
    second = model.fit(x, y, sample_weight=weights, validation_data=held, **given)
    return [model], [first, second]


@training()
def preprocessing_inside(folder):
    """Words, numbers and pictures as they come; what they need is in the model."""
    words = keras.Input((), dtype="string", name="words")
    facts = keras.Input((3,), name="facts")
    pictures = keras.Input((8, 8, 1), name="pictures")
    vectorize = layers.TextVectorization(max_tokens=12, output_sequence_length=4)
    said = ["red tree", "a green tree", "red red house", "green"] * 12
    vectorize.adapt(said)
    normalize = layers.Normalization()
    values = 3 + numbers(48, 3)
    normalize.adapt(values)
    text = layers.GlobalAveragePooling1D()(layers.Embedding(12, 5)(vectorize(words)))
    scaled = layers.Rescaling(0.5)(layers.CenterCrop(6, 6)(pictures))
    parts = [text, normalize(facts), layers.Flatten()(scaled)]
    hidden = layers.Dense(6, activation="gelu")(layers.Concatenate()(parts))
    model = keras.Model([words, facts, pictures], layers.Dense(1)(hidden))
    model.compile("adam", "mse")
    x = {"words": tf.constant(said), "facts": values, "pictures": numbers(48, 8, 8, 1)}
    data = tf.data.Dataset.from_tensor_slices((x, numbers(48, 1))).batch(8)
    return [model], [model.fit(data, epochs=2, verbose=0)]


class Unbuilt(keras.Model):
    """Nothing is known of its input until the first batch comes, and inner models are nested."""

    def __init__(self):
        super().__init__()
        self.blocks = [
            keras.Sequential(
                [layers.Dense(6, use_bias=False), layers.BatchNormalization(), layers.ReLU()]
            )
            for _ in range(2)
        ]
        self.head = keras.Sequential([layers.Dropout(0.1, seed=3), layers.Dense(1)])

    def call(self, x, training=None):
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(ops.nn.gelu(x), training=training)


@training(draws=True)
def unbuilt_and_nested(folder):
    model = Unbuilt()
    model.compile("adam", "mse", metrics=[keras.metrics.MeanAbsoluteError()])
    history = model.fit(*pairs(), batch_size=8, epochs=2, validation_split=0.25, verbose=0)
    return [model], [history]
