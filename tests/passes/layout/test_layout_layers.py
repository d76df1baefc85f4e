"""Layout: spatial layers, and chains of layers, against the same layers written channels_last."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import with_slow
from laid_out_models import (
    CHAINS,
    FIRST,
    SHAPE,
    Run,
    alike,
    as_written,
    assert_close,
    between,
    both_ways,
    conv,
    functional,
    images,
    laid_out,
    shake,
    to_first,
    to_last,
)

layers = keras.layers


SPATIAL = {
    "Conv1D": (lambda **o: layers.Conv1D(4, 3, activation="relu", **o), (2, 3, 9)),
    "Conv1D causal": (lambda **o: layers.Conv1D(4, 3, padding="causal", **o), (2, 3, 9)),
    "Conv1D causal dilated": (
        lambda **o: layers.Conv1D(4, 2, padding="causal", dilation_rate=3, **o),
        (1, 3, 9),
    ),
    "Conv2D": (lambda **o: layers.Conv2D(4, 3, **o), (2, 3, 7, 9)),
    "Conv2D same": (lambda **o: layers.Conv2D(4, (2, 4), padding="same", **o), (1, 3, 7, 5)),
    "Conv2D stride over kernel": (lambda **o: layers.Conv2D(4, 2, strides=3, **o), (2, 3, 8, 11)),
    "Conv2D dilated": (lambda **o: layers.Conv2D(4, 3, dilation_rate=2, **o), (2, 3, 9, 7)),
    "Conv2D no bias": (lambda **o: layers.Conv2D(4, 1, use_bias=False, **o), (1, 3, 5, 1)),
    "Conv2D groups": (lambda **o: layers.Conv2D(4, 3, groups=2, **o), (2, 4, 7, 9)),
    "Conv3D": (lambda **o: layers.Conv3D(2, 2, strides=(1, 2, 1), **o), (2, 3, 4, 5, 3)),
    "Conv1DTranspose": (lambda **o: layers.Conv1DTranspose(4, 3, strides=2, **o), (2, 3, 5)),
    "Conv2DTranspose": (
        lambda **o: layers.Conv2DTranspose(
            4, 3, strides=2, padding="same", output_padding=1, activation="tanh", **o
        ),
        (2, 3, 5, 4),
    ),
    "Conv3DTranspose": (lambda **o: layers.Conv3DTranspose(2, 2, strides=2, **o), (1, 3, 2, 3, 2)),
    "DepthwiseConv1D": (lambda **o: layers.DepthwiseConv1D(3, depth_multiplier=2, **o), (2, 3, 7)),
    "DepthwiseConv2D": (lambda **o: layers.DepthwiseConv2D(3, strides=2, **o), (2, 3, 7, 8)),
    "SeparableConv1D": (lambda **o: layers.SeparableConv1D(4, 3, **o), (2, 3, 7)),
    "SeparableConv2D": (
        lambda **o: layers.SeparableConv2D(4, 3, padding="same", **o),
        (1, 3, 5, 6),
    ),
    "MaxPooling1D": (lambda **o: layers.MaxPooling1D(2, **o), (2, 3, 7)),
    "MaxPooling2D": (lambda **o: layers.MaxPooling2D(2, strides=3, **o), (2, 3, 7, 8)),
    "MaxPooling3D": (lambda **o: layers.MaxPooling3D(2, padding="same", **o), (1, 3, 3, 4, 5)),
    "AveragePooling1D": (lambda **o: layers.AveragePooling1D(3, padding="same", **o), (2, 3, 7)),
    "AveragePooling2D": (lambda **o: layers.AveragePooling2D((2, 3), **o), (2, 3, 7, 8)),
    "AveragePooling3D": (lambda **o: layers.AveragePooling3D(2, **o), (1, 3, 4, 4, 5)),
    "GlobalMaxPooling1D": (lambda **o: layers.GlobalMaxPooling1D(**o), (2, 3, 7)),
    "GlobalMaxPooling2D": (lambda **o: layers.GlobalMaxPooling2D(keepdims=True, **o), (2, 3, 7, 8)),
    "GlobalAveragePooling1D": (lambda **o: layers.GlobalAveragePooling1D(**o), (2, 3, 7)),
    "GlobalAveragePooling2D": (lambda **o: layers.GlobalAveragePooling2D(**o), (2, 3, 7, 8)),
    "GlobalAveragePooling3D": (
        lambda **o: layers.GlobalAveragePooling3D(keepdims=True, **o),
        (1, 3, 3, 4, 5),
    ),
    "UpSampling2D": (lambda **o: layers.UpSampling2D((2, 3), **o), (2, 3, 3, 4)),
    "UpSampling2D bilinear": (
        lambda **o: layers.UpSampling2D(2, interpolation="bilinear", **o),
        (1, 3, 3, 4),
    ),
    "UpSampling3D": (lambda **o: layers.UpSampling3D(2, **o), (1, 3, 2, 3, 2)),
    "Cropping2D": (lambda **o: layers.Cropping2D(((1, 0), (2, 1)), **o), (2, 3, 5, 6)),
    "Cropping3D": (lambda **o: layers.Cropping3D(1, **o), (1, 2, 3, 4, 5)),
    "ZeroPadding1D": (lambda **o: layers.ZeroPadding1D((1, 2), **o), (2, 3, 5)),
    "ZeroPadding2D": (lambda **o: layers.ZeroPadding2D(((1, 2), (0, 3)), **o), (2, 3, 5, 6)),
    "ZeroPadding3D": (lambda **o: layers.ZeroPadding3D(1, **o), (1, 2, 3, 4, 5)),
}


if hasattr(layers, "AdaptiveAveragePooling2D"):  # since Keras 3.14
    SPATIAL |= {
        "AdaptiveAveragePooling2D": (
            lambda **o: layers.AdaptiveAveragePooling2D((2, 3), **o),
            (2, 3, 7, 8),
        ),
        "AdaptiveMaxPooling1D": (lambda **o: layers.AdaptiveMaxPooling1D(3, **o), (2, 3, 7)),
    }


# TensorFlow's kernels for these are float32 at most.
NO_FLOAT64 = ("MaxPooling3D", "AveragePooling3D")


# The code for one and three dimensions is that for two.
IN_OTHER_DIMENSIONS = (
    *("Conv1D causal", "Conv3DTranspose", "DepthwiseConv1D", "SeparableConv1D", "MaxPooling1D"),
    *("AveragePooling1D", "AveragePooling3D", "GlobalMaxPooling1D", "GlobalAveragePooling1D"),
    *("UpSampling3D", "Cropping3D", "ZeroPadding1D", "ZeroPadding3D"),
)


@pytest.mark.parametrize("name", with_slow(SPATIAL, IN_OTHER_DIMENSIONS))
def test_spatial_layers_are_their_channels_last_twins(name, rng):
    make, shape = SPATIAL[name]
    dtype, tolerance = ("float32", 1e-6) if name in NO_FLOAT64 else ("float64", 1e-13)
    first, last = make(**FIRST, dtype=dtype), make(data_format="channels_last", dtype=dtype)
    x = images(rng, *shape, dtype=dtype)
    first.build(shape)
    last.build(to_last(x).shape)
    shake(first, rng)
    last.set_weights(first.get_weights())
    model, twin = keras.Sequential([first]), keras.Sequential([last])
    y, _, dx, *others = Run(model, shape, context=laid_out(model), dtype=dtype, weigh=alike)(x)
    twin_run = Run(twin, to_last(x).shape, dtype=dtype, weigh=alike)
    twin_y, _, twin_dx, *twin_others = twin_run(to_last(x))
    assert_close([y, dx, *others], [to_first(twin_y), to_first(twin_dx), *twin_others], tolerance)


@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_what_keras_computes(name, rng, float64):
    model = functional(SHAPE, CHAINS[name])
    shake(model, rng)
    written, laid = both_ways(model, rng)
    assert_close(laid, written, 1e-11)


def test_one_dimension(rng, float64):
    """Some layers of one dimension have no data_format: their channels are always last."""

    def body(x):
        x = layers.MaxPooling1D(2, **FIRST)(x)
        x = layers.Cropping1D(1)(layers.UpSampling1D(2)(layers.SpatialDropout1D(0.5)(x)))
        x = layers.ZeroPadding1D(1, **FIRST)(layers.Reshape((4, -1))(layers.ReLU()(x)))
        return layers.GlobalMaxPooling1D(**FIRST)(layers.BatchNormalization(axis=1)(x))

    model = functional((2, 3, 9), body)
    shake(model, rng)
    written, laid = both_ways(model, rng, shape=(2, 3, 9))
    assert_close(laid, written, 1e-11)


def test_regularizers_and_their_losses(rng):
    """In float32, as Keras's regularizers are."""
    body = between(
        lambda: layers.Identity(),
        lambda: layers.ActivityRegularization(0.1, 0.1),
        lambda: conv(activity_regularizer="l2", kernel_regularizer="l1"),
    )
    written, laid = both_ways(functional(SHAPE, body), rng)
    assert_close(laid, written)


@pytest.mark.parametrize(
    "name", [pytest.param("normalizations", marks=pytest.mark.slow), "random layers"]
)
def test_layers_know_inference_from_training(name, rng, float64):
    model = functional(SHAPE, CHAINS[name])
    shake(model, rng)
    written, laid = both_ways(model, rng, training=False)
    assert_close(laid, written, 1e-11)


def test_masks_are_left_alone(rng):
    """A mask has the dimensions of what the user wrote."""
    x = images(rng, 2, 3, 3)
    x[:, 1] = 0.0
    model = functional((2, 3, 3), lambda t: layers.BatchNormalization(axis=1)(layers.Masking()(t)))
    pooled = functional(
        (2, 3, 3),
        lambda t: layers.GlobalAveragePooling1D(**FIRST)(
            layers.ReLU()(layers.Masking()(t)), mask=layers.Lambda(lambda m: m[:, :, 0] > 0)(t)
        ),
    )
    for one in (model, pooled):
        plain = Run(one, x.shape, training=True)(x)
        assert_close(Run(one, x.shape, context=laid_out(one), training=True)(x), plain, 1e-7)


def test_a_bias_is_added_along_the_channels(rng):
    """Keras adds it along the width where that is as long as the channels."""
    model = functional((1, 2, 5, 4), lambda x: conv(4, 1, bias_initializer="normal")(x))
    model.layers[1].bias.assign([1.0, 2.0, 3.0, 4.0])
    y, *_ = Run(model, (1, 2, 5, 4), context=laid_out(model))(np.zeros((1, 2, 5, 4), "float32"))
    np.testing.assert_array_equal(y[0, :, 0, 0], [1.0, 2.0, 3.0, 4.0])


def test_an_unbuilt_model_is_built_as_it_is_written(rng):
    model = keras.Sequential(
        [conv(), layers.BatchNormalization(axis=1), layers.Flatten(), layers.Dense(2)]
    )
    with laid_out(model):
        y = tf.function(model)(tf.ones(SHAPE))
    assert model.layers[0].kernel.shape == (3, 3, 3, 4)
    assert model.layers[1].gamma.shape == (4,)
    with as_written(model):
        np.testing.assert_allclose(y, model(tf.ones(SHAPE)), atol=1e-5)
