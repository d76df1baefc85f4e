"""Data that bench makes up for a model."""

import catalogue
import keras
import numpy as np
import pytest
import tensorflow as tf
from benched import feed_for, make

from tfaccel.cli._command import UsageError
from tfaccel.cli.inputs.feeds import Feed

layers = keras.layers


def one_batch(model, **arguments):
    return next(iter(feed_for(model, **arguments).dataset))


def test_the_same_seed_gives_the_same_batches():
    model = make(layers.Dense(1))
    for a, b in zip(one_batch(model), one_batch(model), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one_batch(model, batch_size=7)[0].shape == (7, 6)


@pytest.mark.parametrize(
    ("loss", "units", "shape", "dtype", "values"),
    [
        ("sparse_categorical_crossentropy", 3, (4,), "int32", {0, 1, 2}),
        (keras.losses.SparseCategoricalCrossentropy(), 3, (4,), "int32", {0, 1, 2}),
        ("categorical_crossentropy", 3, (4, 3), "float32", {0, 1}),
        ("binary_crossentropy", 2, (4, 2), "float32", {0, 1}),
        ("mse", 2, (4, 2), "float32", None),
        (["huber"], 2, (4, 2), "float32", None),
    ],
)
def test_labels_fit_the_loss(loss, units, shape, dtype, values):
    _, labels = one_batch(make(layers.Dense(units, activation="softmax"), loss=loss))
    assert (tuple(labels.shape), labels.dtype.name) == (shape, dtype)
    if values is None:
        assert 0 <= labels.numpy().min() <= labels.numpy().max() < 1
    else:
        assert set(labels.numpy().ravel()) <= values


def test_labels_of_a_sequence():
    model = make(layers.LSTM(4, return_sequences=True), shape=(None, 3), loss="mae")
    x, y = one_batch(model, input_shape=(5, 3))
    assert (x.shape, y.shape) == ((4, 5, 3), (4, 5, 4))


@pytest.mark.parametrize(
    ("arguments", "dtype", "below"),
    [({}, "int32", 7), ({"dtype": "int64"}, "int64", 7), ({"dtype": "int32"}, "int32", 7)],
)
def test_an_embedding_gets_indices_that_it_has(arguments, dtype, below):
    body = [layers.Embedding(7, 2), layers.Flatten(), layers.Dense(1)]
    x, _ = one_batch(make(*body, shape=(50,), **arguments), batch_size=20)
    assert x.dtype.name == dtype
    assert x.numpy().min() == 0
    assert x.numpy().max() == below - 1


@pytest.mark.parametrize(
    ("dtype", "values"), [("bool", {False, True}), ("int32", {0, 1}), ("uint8", set(range(256)))]
)
def test_inputs_of_other_dtypes(dtype, values):
    x, _ = one_batch(make(layers.Lambda(lambda x: tf.cast(x, tf.float32)), dtype=dtype))
    assert x.dtype.name == dtype
    assert set(x.numpy().ravel()) <= values


def test_strings():
    body = [layers.StringLookup(vocabulary=["word1"]), layers.Embedding(2, 3), layers.Flatten()]
    x, _ = one_batch(make(*body, dtype="string"))
    assert x.dtype == tf.string


def test_models_that_scale_images_get_whole_ones():
    x, _ = one_batch(make(layers.Rescaling(1 / 255), layers.Dense(1)), batch_size=32)
    assert 100 < x.numpy().max() < 255
    x, _ = one_batch(make(layers.Dense(1)), batch_size=32)
    assert 0.5 < x.numpy().max() < 1


@pytest.mark.slow
def test_several_inputs_and_outputs():
    model, _ = catalogue.several_inputs_and_outputs()
    x, y = one_batch(model)
    assert {name: value.shape for name, value in x.items()} == {"a": (4, 4), "b": (4, 3)}
    assert {name: value.shape for name, value in y.items()} == {"u": (4, 1), "v": (4, 2)}
    model.train_on_batch(x, y)


def test_a_list_of_inputs_and_outputs_with_losses_by_name():
    inputs = [keras.Input((2,), name="a"), keras.Input((3,), name="b")]
    joined = layers.Concatenate()(inputs)
    outputs = [layers.Dense(1, name="u")(joined), layers.Dense(4, name="v")(joined)]
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"u": "mse", "v": "sparse_categorical_crossentropy"})
    x, y = one_batch(model)
    assert [value.shape for value in x] == [(4, 2), (4, 3)]
    assert [value.dtype.name for value in y] == ["float32", "int32"]
    model.fit(feed_for(model).dataset, steps_per_epoch=1, verbose=0)


def test_a_subclassed_model_needs_its_input_shape():
    model = catalogue.Subclassed()
    model.compile("sgd", "mse")
    with pytest.raises(UsageError, match="does not declare its inputs: give --input_shape"):
        feed_for(model)
    x, y = one_batch(model, input_shape=(5,))
    assert (x.shape, y.shape) == ((4, 5), (4, 1))


def test_a_model_with_a_loss_inside_has_no_labels():
    class WithLoss(layers.Layer):
        def call(self, inputs):
            self.add_loss(tf.reduce_mean(inputs))
            return inputs

    model = make(layers.Dense(1), WithLoss(), loss=None)
    assert len(one_batch(model)) == 1


def test_what_can_not_be_made_up():
    def own(y_true, y_pred):
        return y_pred

    with pytest.raises(UsageError, match="for the loss own: give --data"):
        feed_for(make(layers.Dense(1), loss=own))
    model = catalogue.CustomStep()
    model.compile("sgd")
    with pytest.raises(UsageError, match="train_step of its own: give --data"):
        feed_for(model, input_shape=(3,))
    with pytest.raises(UsageError, match="the shape \\(\\?, 3\\): give --input_shape or --data"):
        feed_for(make(layers.LSTM(2), shape=(None, 3)))


def test_a_model_that_does_not_take_its_own_shape():
    model = catalogue.Subclassed()
    model.compile("sgd", "mse")
    model(np.ones((1, 4), "float32"))
    with pytest.raises(UsageError, match="the model does not take the data: .+"):
        feed_for(model, input_shape=(5,))


def test_a_feed_never_ends():
    feed = feed_for(make(layers.Dense(1)))
    assert isinstance(feed, Feed)
    assert feed.dataset.cardinality() == tf.data.INFINITE_CARDINALITY
