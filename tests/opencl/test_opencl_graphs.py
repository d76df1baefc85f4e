"""The kernel `opencl` inside of graphs: what can't hold it, and how a profile shows it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfaccel import ops
from tfaccel.ops.kernels._opencl import devices
from tfaccel.profiling.traces import _op_kinds, _xplane
from tfaccel.profiling.traces.op_trace import OpTrace

ON_DEVICE = pytest.mark.skipif(devices.missing() is not None, reason=str(devices.missing()))
X = np.ones((2, 3), np.float32)


class Forced(keras.layers.Layer):
    """A product by the kernel."""

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1], shape[-1]), initializer="identity")

    def call(self, x):
        return ops.matmul(x, self.w, kernel="opencl")


@ON_DEVICE
def test_a_saved_model_can_not_hold_it(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Forced()])
    ways = (
        lambda: model.export(tmp_path / "exported", verbose=False),
        lambda: tf.saved_model.save(model, str(tmp_path / "saved")),
    )
    for save in ways:
        with pytest.raises(ValueError, match="no SavedModel can hold.*without kernel='opencl'"):
            save()
    np.testing.assert_array_equal(model.predict(X, verbose=0), X)
    model.compile("sgd", "mse", steps_per_execution=2)
    model.fit(X, X, batch_size=1, verbose=0)


@ON_DEVICE
def test_loops_branches_and_functions_hold_it():
    inner = tf.function(lambda x: ops.matmul(x, tf.eye(3), kernel="opencl"), autograph=False)

    def again(i, x):
        return i + 1, tf.ensure_shape(inner(ops.matmul(x, tf.eye(3), kernel="opencl")), (2, 3))

    @tf.function(autograph=False)
    def outer(x):
        _, x = tf.while_loop(lambda i, x: i < 2, again, (0, x))
        return tf.cond(tf.reduce_sum(x) > 0, lambda: inner(x), lambda: x)

    x = tf.constant(X)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = outer(x)
    np.testing.assert_array_equal(y, X)
    np.testing.assert_array_equal(tape.gradient(y, x), X)
    data = tf.data.Dataset.from_tensors(X).map(inner)
    np.testing.assert_array_equal(next(iter(data)), X)


@ON_DEVICE
def test_xla_refuses_what_is_around_it_and_in_its_gradients():
    @tf.function(jit_compile=True, autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.cond(tf.reduce_sum(x) > 0, lambda: ops.matmul(x, x, kernel="opencl"), lambda: x)
        return tape.gradient(y, x)

    with pytest.raises(ValueError, match="XLA can't compile"):
        run(tf.eye(3))


def test_a_profile_names_it():
    name, kind = _xplane.operation("model/layer/opencl_depthwise_conv2d_12:PyFuncStateless")
    assert (name, kind) == ("opencl_depthwise_conv2d", _op_kinds.CONVOLUTION)
    name, kind = _xplane.operation("opencl_matmul:PyFuncStateless")
    assert (name, kind) == ("opencl_matmul", _op_kinds.MATMUL)
    assert _xplane.operation("mine/opencl_like/PyFunc:PyFunc") == ("PyFunc", _op_kinds.OTHER)


@ON_DEVICE
def test_a_profile_of_a_run_has_it(tmp_path):
    run = tf.function(lambda x: ops.matmul(x, x, kernel="opencl"), autograph=False)
    x = tf.eye(64)
    run(x)
    trace = OpTrace(tmp_path)
    assert trace.start()
    run(x)
    (cost,) = (op for op in trace.stop().ops if op.name == "opencl_matmul")
    assert cost.op_kind == _op_kinds.MATMUL and cost.seconds > 0
