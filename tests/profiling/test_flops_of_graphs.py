"""FLOPs of control flow, calls, einsums and gradients within a model."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from counted import BATCH, specs

from tfaccel.profiling.flops import _rules
from tfaccel.profiling.flops.counting import forward_flops, model_flops_per_step

layers = keras.layers


def chain(*frozen):
    """Three dense layers, 4 wide; those named are frozen."""
    model = keras.Sequential([keras.Input((4,))] + [layers.Dense(4) for _ in range(3)])
    for index in frozen:
        model.layers[index].trainable = False
    return model


@pytest.mark.parametrize(
    ("frozen", "products"),
    [
        ((), 3 + 3 + 3),
        ((0,), 1 + 2 + 3),  # nothing before the second needs a gradient
        ((0, 1), 1 + 1 + 2),
        ((1,), 3 + 2 + 3),  # the gradient goes through the second to the first
        ((2,), 3 + 3 + 2),
        ((0, 1, 2), 1 + 1 + 1),
    ],
)
def test_frozen_layers(frozen, products):
    found = forward_flops(chain(*frozen), specs((4,)))
    assert found.forward == 3 * 2 * BATCH * 16
    assert found.step == products * 2 * BATCH * 16


class Custom(keras.layers.Layer):
    """A layer that does what `body` does with its 4x4 kernel."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def build(self, shape):
        self.kernel = self.add_weight(shape=(4, 4))

    def call(self, inputs):
        return self.body(inputs, self.kernel.value)


def stopped(x, kernel):
    return tf.stop_gradient(x @ kernel) @ kernel


def assigned(x, kernel):
    """As spectral normalisation keeps a running estimate."""
    keeper.assign(tf.reduce_sum(x @ kernel))
    return x @ kernel


def looked_up(x, kernel):
    """A choice by the largest product, which has no gradient."""
    index = tf.argmax(x @ kernel, axis=1)
    return tf.one_hot(index, 4) * (x @ kernel)


def counted_loop(x, kernel):
    return tf.while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, y @ kernel), (0, x))[1]


def bounded_loop(x, kernel):
    return tf.while_loop(
        lambda y: True, lambda y: (y @ kernel,), (x,), maximum_iterations=tf.constant(6)
    )[0]


def strided_loop(x, kernel):
    return tf.while_loop(lambda i, y: i <= 10, lambda i, y: (3 + i, y @ kernel), (1, x))[1]


def nested_loop(x, kernel):
    limit = tf.constant(3)

    def inner(y):
        return tf.while_loop(lambda j, z: j < limit, lambda j, z: (j + 1, z @ kernel), (0, y))[1]

    return tf.while_loop(lambda i, y: i < 2, lambda i, y: (i + 1, inner(y)), (0, x))[1]


def endless_loop(x, kernel):
    return tf.while_loop(lambda y: tf.norm(y) > 1.0, lambda y: (y @ kernel,), (x,))[0]


def loop_without_products(x, kernel):
    return tf.while_loop(lambda y: tf.norm(y) > 1.0, lambda y: (y / 2,), (x @ kernel,))[0]


def branches(x, kernel):
    return tf.cond(tf.norm(x) > 1.0, lambda: x @ kernel @ kernel, lambda: x @ kernel)


def switch(x, kernel):
    index = tf.cast(tf.norm(x), tf.int32)
    return tf.switch_case(index, [lambda: x, lambda: x @ kernel, lambda: x @ kernel @ kernel])


def compiled(x, kernel):
    return tf.function(lambda y: y @ kernel, jit_compile=True)(x)


def called_twice(x, kernel):
    function = tf.function(lambda y: y @ kernel)
    return function(function(x))


def batched(x, kernel):
    return tf.matmul(tf.stack([x, x]), kernel, transpose_b=True)[0]


def unused(x, kernel):
    return x @ kernel + 0 * (lambda dead: x)(x @ kernel @ kernel)


def mapped(x, kernel):
    return tf.map_fn(lambda row: (row[None] @ kernel)[0], x)


def python_function(x, kernel):
    made = tf.py_function(lambda y: y, [x @ kernel], tf.float32)
    return tf.ensure_shape(made, x.shape)


keeper = tf.Variable(0.0)
ONE = 2 * BATCH * 16


# What a layer does, the forward operations, those of a step, and what can't be counted.
CUSTOM = [
    (stopped, 2 * ONE, (1 + 2) * ONE, 0),
    (assigned, 2 * ONE, (1 + 3) * ONE, 0),
    (looked_up, 2 * ONE, (1 + 3) * ONE, 0),
    (counted_loop, 5 * ONE, 15 * ONE, 0),
    (bounded_loop, 6 * ONE, 18 * ONE, 0),
    (strided_loop, 4 * ONE, 12 * ONE, 0),
    (nested_loop, 6 * ONE, 18 * ONE, 0),
    (endless_loop, 0, 0, 1),
    (loop_without_products, ONE, 3 * ONE, 0),
    (branches, 2 * ONE, 6 * ONE, 0),
    (switch, 2 * ONE, 6 * ONE, 0),
    (compiled, ONE, 3 * ONE, 0),
    (called_twice, 2 * ONE, 6 * ONE, 0),
    (batched, 2 * ONE, 6 * ONE, 0),
    (unused, ONE, 3 * ONE, 0),
    (mapped, ONE, 3 * ONE, 0),
    (python_function, ONE, 3 * ONE, 1),
]


@pytest.mark.parametrize(
    ("body", "forward", "step", "uncounted"), CUSTOM, ids=[row[0].__name__ for row in CUSTOM]
)
def test_control_flow(body, forward, step, uncounted):
    model = keras.Sequential([keras.Input((4,)), Custom(body)])
    found = forward_flops(model, specs((4,)))
    assert (found.forward, found.step, found.uncounted) == (forward, step, uncounted)
    assert (model_flops_per_step(model, (np.ones((BATCH, 4), "float32"),)) is None) == (
        uncounted > 0
    )


def test_the_losses_of_layers_count():
    class Penalised(keras.layers.Layer):
        def build(self, shape):
            self.kernel = self.add_weight(shape=(4, 4))

        def call(self, inputs):
            self.add_loss(tf.reduce_sum(inputs @ self.kernel.value))
            return inputs

    model = keras.Sequential([keras.Input((4,)), Penalised()])
    assert forward_flops(model, specs((4,))).forward == ONE


@pytest.mark.parametrize(
    ("equation", "left", "right", "flops"),
    [
        ("ij,jk->ik", (2, 3), (3, 5), 2 * 2 * 3 * 5),
        ("bij,bjk->bik", (7, 2, 3), (7, 3, 5), 2 * 7 * 2 * 3 * 5),
        ("aecd,abcd->acbe", (2, 5, 3, 4), (2, 6, 3, 4), 2 * 2 * 5 * 6 * 3 * 4),
        ("...ij,...jk->...ik", (7, 1, 2, 3), (6, 3, 5), 2 * 7 * 6 * 2 * 3 * 5),
        ("ij,ij->", (2, 3), (2, 3), 2 * 2 * 3),
        ("ij,jk->i", (2, 3), (3, 5), 2 * 2 * 3),  # k is summed beforehand
        ("ij,ij->ij", (2, 3), (2, 3), None),  # elementwise
        ("i,j->ij", (2,), (3,), None),  # nothing is added up
    ],
)
def test_einsum(equation, left, right, flops):
    assert _rules.einsum_flops(equation, left, right) == flops


@pytest.mark.parametrize(
    ("mode", "direction", "layer_count", "multiplications"),
    [
        ("lstm", "unidirectional", 1, 4 * 5 * (3 + 5)),
        ("gru", "bidirectional", 1, 2 * 3 * 5 * (3 + 5)),
        ("rnn_tanh", "bidirectional", 2, 2 * 5 * (3 + 5) + 2 * 5 * (10 + 5)),
    ],
)
def test_cudnn_rnn(mode, direction, layer_count, multiplications):
    """The op is only traced, so no GPU is needed."""
    states = layer_count * (2 if direction == "bidirectional" else 1)

    @tf.function
    def run():
        zeros = tf.zeros((states, BATCH, 5))
        return tf.raw_ops.CudnnRNNV3(
            input=tf.zeros((7, BATCH, 3)),
            input_h=zeros,
            input_c=zeros,
            params=tf.zeros((1000,)),
            sequence_lengths=tf.fill((BATCH,), 7),
            rnn_mode=mode,
            direction=direction,
        ).output

    graph = run.get_concrete_function().graph
    (op,) = (op for op in graph.get_operations() if op.type == "CudnnRNNV3")
    found = _rules.product(op)
    assert found.flops == 2 * 7 * BATCH * multiplications


def test_gradients_inside_the_forward_pass_count():
    """As in networks that are penalised for their gradient."""

    def body(x, kernel):
        image = tf.reshape(x, (BATCH, 2, 2, 1))
        filters = tf.reshape(kernel[:2, :2], (2, 2, 1, 1))
        with tf.GradientTape() as tape:
            tape.watch(filters)
            out = tf.nn.conv2d(image, filters, 1, "SAME")
        return x + tf.reduce_sum(tape.gradient(out, filters)) + tf.reduce_sum(out)

    model = keras.Sequential([keras.Input((4,)), Custom(body)])
    convolution = 2 * BATCH * 4 * 4
    assert forward_flops(model, specs((4,))).forward == 2 * convolution
