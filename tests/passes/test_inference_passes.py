"""The passes for predictions alone: folded_norm and frozen_weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import crossed
from inference_models import image_model, numbers, spread

import tfaccel
from tfaccel.core.plan import Plan
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.inference.predict_function import PredictFunction
from tfaccel.passes import INFERENCE_PASSES, FoldedNorm, FrozenWeights

pytestmark = pytest.mark.usefixtures("unoptimised")
layers = keras.layers
BatchNormalization = layers.BatchNormalization
ITEMS = pytest.mark.parametrize("kind", INFERENCE_PASSES, ids=lambda kind: kind.name)


def workload(model, training=False):
    return Workload(model, training=training)


def traced(model, x, *items):
    """The predictions under passes, and the operations that make them."""
    function = PredictFunction(workload(model), Plan(items))
    spec = tf.TensorSpec([None, *x.shape[1:]])
    step = tf.function(function.step, autograph=False).get_concrete_function((spec,))
    return step((tf.constant(x),)), step.graph.get_operations()


PRODUCTS = {
    "Conv1D": (lambda bias: layers.Conv1D(4, 3, use_bias=bias, padding="causal"), (7, 3)),
    "Conv2D": (lambda bias: layers.Conv2D(4, 3, use_bias=bias, strides=2), (7, 6, 3)),
    "Conv2D in groups": (lambda bias: layers.Conv2D(4, 3, use_bias=bias, groups=2), (7, 6, 6)),
    "Conv3D": (lambda bias: layers.Conv3D(4, 2, use_bias=bias), (4, 4, 3, 2)),
    "DepthwiseConv1D": (
        lambda bias: layers.DepthwiseConv1D(3, use_bias=bias, depth_multiplier=2),
        (7, 3),
    ),
    "DepthwiseConv2D": (
        lambda bias: layers.DepthwiseConv2D(3, use_bias=bias, depth_multiplier=2),
        (7, 6, 3),
    ),
    "SeparableConv1D": (lambda bias: layers.SeparableConv1D(4, 3, use_bias=bias), (7, 3)),
    "SeparableConv2D": (lambda bias: layers.SeparableConv2D(4, 3, use_bias=bias), (7, 6, 3)),
    "Dense": (lambda bias: layers.Dense(4, use_bias=bias), (5,)),
    "Dense on sequences": (lambda bias: layers.Dense(4, use_bias=bias), (6, 5)),
}


# Each with a bias and without, and with weights as variables and as constants.
@pytest.mark.parametrize(
    ("name", "bias", "frozen"),
    [
        (name, bias, frozen)
        for place, name in enumerate(PRODUCTS)
        for bias in (False, True)
        for frozen in (False, True)
        if (place + bias + frozen) % 2 == 0 or name == "Conv2D"
    ],
)
def test_a_normalization_becomes_part_of_a_product(name, bias, frozen):
    make, shape = PRODUCTS[name]
    norm = BatchNormalization(center=not bias, scale=bias, epsilon=0.01)
    model = spread(keras.Sequential([keras.Input(shape), make(bias), norm]))
    x = numbers(*shape)
    items = (FoldedNorm(), FrozenWeights()) if frozen else (FoldedNorm(),)
    found, operations = traced(model, x, *items)
    np.testing.assert_allclose(model.predict(x, verbose=0), found, rtol=2e-5, atol=2e-6)
    through = [op for op in operations if op.type == "Mul" and op.outputs[0].shape.rank]
    through = [op for op in through if op.outputs[0].shape[0] is None]
    assert not through, "the normalization is still there"


def _behind(*middle, **options):
    def make():
        stack = [layers.Conv2D(4, 3), *[one() for one in middle], BatchNormalization(**options)]
        return keras.Sequential([keras.Input((7, 6, 3)), *stack])

    return make


class InTraining(layers.Layer):
    """A normalization by the batch's statistics in predictions, too."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = layers.Conv2D(4, 3), BatchNormalization()

    def call(self, inputs):
        return self.norm(self.convolution(inputs), training=True)


class Twice(layers.Layer):
    """A convolution whose result is read twice."""

    def __init__(self):
        super().__init__()
        self.convolution, self.norm = layers.Conv2D(4, 3), BatchNormalization()

    def call(self, inputs):
        x = self.convolution(inputs)
        return keras.ops.concatenate([x, self.norm(x)], axis=-1)


class OwnConvolution(layers.Conv2D):
    def call(self, inputs):
        return super().call(inputs) ** 2


OTHERS = {
    "an activation between": _behind(lambda: layers.ReLU()),
    "a pooling between": _behind(lambda: layers.MaxPooling2D()),
    "dropout between": _behind(lambda: layers.Dropout(0.5)),
    "another axis": _behind(axis=1),
    "an activation within": lambda: keras.Sequential(
        [keras.Input((7, 6, 3)), layers.Conv2D(4, 3, activation="relu"), BatchNormalization()]
    ),
    "a call of its own": lambda: keras.Sequential(
        [keras.Input((7, 6, 3)), OwnConvolution(4, 3), BatchNormalization()]
    ),
    "read twice": lambda: keras.Sequential([keras.Input((7, 6, 3)), Twice()]),
    "two in a row": lambda: keras.Sequential(
        [keras.Input((7, 6, 3)), layers.Conv2D(4, 3), BatchNormalization(), BatchNormalization()]
    ),
}


@crossed(("make", "items"), OTHERS, [(FoldedNorm(),), (FoldedNorm(), FrozenWeights())])
def test_whatever_is_between_is_right(make, items):
    model, x = spread(make()), numbers(7, 6, 3)
    found, _ = traced(model, x, *items)
    np.testing.assert_allclose(model.predict(x, verbose=0), found, rtol=2e-5, atol=2e-6)


def test_statistics_of_the_batch_stay():
    model, x = spread(keras.Sequential([keras.Input((7, 6, 3)), InTraining()])), numbers(7, 6, 3)
    start = [v.numpy() for v in model.variables]
    expected = model.predict(x, verbose=0)
    after = [v.numpy() for v in model.variables]
    for variable, value in zip(model.variables, start, strict=True):
        variable.assign(value)
    found, _ = traced(model, x, FoldedNorm())
    np.testing.assert_allclose(expected, found, rtol=2e-5, atol=2e-6)
    for variable, value in zip(model.variables, after, strict=True):
        np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5)
    with pytest.raises(ValueError, match="the forward pass writes to .*moving_mean"):
        traced(model, x, FrozenWeights())


def test_beside_kernels_the_kernels_compute_it():
    """What is folded goes through whatever another pass has put in place of `call`."""
    model, x = image_model(), numbers(8, 8, 3)
    seen = []
    first = next(layer for layer in model.layers if isinstance(layer, layers.Conv2D))
    own = first.call

    def call(inputs):
        seen.append(tf.convert_to_tensor(first.kernel))
        return own(inputs)

    call.__module__ = "tfaccel.passes.some"
    vars(first)["call"] = call
    found, _ = traced(model, x, FoldedNorm())
    del vars(first)["call"]
    assert len(seen) % 2 == 0 and len(seen) >= 2  # once for nobody, once folded
    np.testing.assert_allclose(model.predict(x, verbose=0), found, rtol=2e-5, atol=2e-6)


def test_weights_become_constants():
    model, x = image_model(), numbers(8, 8, 3)
    _, operations = traced(model, x, FrozenWeights())
    kinds = {operation.type for operation in operations}
    assert "ReadVariableOp" not in kinds and "Const" in kinds
    _, operations = traced(model, x)
    assert "ReadVariableOp" in {operation.type for operation in operations}


REFUSED = [
    (FoldedNorm, lambda: keras.Sequential([keras.Input((3,)), layers.Dense(1)]), Refusal.NOTHING),
    (
        FoldedNorm,
        lambda: keras.Sequential([keras.Input((3,)), BatchNormalization()]),
        Refusal.NO_USE,
    ),
    (
        FrozenWeights,
        lambda: keras.Sequential([keras.Input((3, 2), batch_size=2), layers.GRU(2, stateful=True)]),
        Refusal.STATE,
    ),
    (FrozenWeights, lambda: keras.Sequential([keras.Input((3,)), layers.ReLU()]), Refusal.NO_USE),
]


@pytest.mark.parametrize(("kind", "make", "refusal"), REFUSED)
def test_refusals(kind, make, refusal):
    assert kind().unsupported(workload(make())).kind is refusal


def test_too_many_weights_are_refused(monkeypatch):
    monkeypatch.setattr("tfaccel.passes.inference.frozen_weights.MOST_BYTES", 100)
    assert FrozenWeights().unsupported(workload(image_model())).kind is Refusal.LIMIT


@ITEMS
def test_they_are_not_for_training(kind):
    model = image_model()
    assert kind().unsupported(workload(model, training=True)).kind is Refusal.TASK
    model.compile("sgd", "mse")
    accel = tfaccel.AccelCallback([kind.name], verbose=0)
    model.fit(numbers(8, 8, 3), numbers(3), verbose=0, callbacks=[accel])
    assert accel.plan.is_baseline
