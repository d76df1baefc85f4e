"""oneDNN's kernels by name: when they may be named, and that they compute what they say."""

import numpy as np
import pytest
import tensorflow as tf

from tfaccel.compat import onednn
from tfaccel.ops.kernels import CallSpec, kernels
from tfaccel.system.device import Device

needs_onednn = pytest.mark.skipif(onednn.missing() is not None, reason=str(onednn.missing()))


@pytest.fixture
def left_off(monkeypatch):
    """A CPU on which TensorFlow leaves oneDNN off, and nobody asked for that."""
    monkeypatch.setattr(onednn, "onednn_is_on", lambda: False)
    monkeypatch.setattr(onednn, "missing", lambda: None)
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)


@pytest.mark.usefixtures("left_off")
def test_they_may_be_named_where_they_rest():
    assert onednn.obstacle() is None


@pytest.mark.usefixtures("left_off")
def test_they_are_not_named_where_tensorflow_takes_them(monkeypatch):
    monkeypatch.setattr(onednn, "onednn_is_on", lambda: True)
    assert onednn.obstacle() is not None


@pytest.mark.usefixtures("left_off")
def test_who_asks_for_none_gets_none(monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert onednn.obstacle() == "TF_ENABLE_ONEDNN_OPTS=0 asks for none of oneDNN's kernels"
    spec = CallSpec("matmul", "forward", "float32", (4, 4), (4, 4), device=Device("CPU", "any"))
    (kernel,) = (k for k in kernels("matmul", "forward") if k.name == "onednn")
    assert kernel.unsupported(spec).cause == onednn.obstacle()


def test_a_build_without_them_is_told_from_one_with(monkeypatch):
    monkeypatch.setattr(onednn, "SAMPLE", "_NoSuchOperation")
    assert "has no kernels" in onednn.missing.__wrapped__()


def test_wrong_results_are_noticed(monkeypatch):
    monkeypatch.setattr(onednn, "call", lambda *args, **kwargs: tf.constant([[2.0]]))
    assert "wrong" in onednn.missing.__wrapped__()


@needs_onednn
def test_they_run_eagerly_and_in_a_graph():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 7)).astype("float32"), rng.normal(size=(3, 7)).astype("float32")

    def product(a, b):
        return onednn.call("_MklMatMul", (a, b), T=tf.float32, transpose_b=True)

    for run in (product, tf.function(product)):
        np.testing.assert_allclose(run(a, b), a @ b.T, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_what_an_operation_must_be_told_is_named():
    with pytest.raises((ValueError, tf.errors.OpError), match="padding"):
        onednn.call("_MklNativeConv2D", (tf.ones((1, 1, 1, 1)),) * 2, T=tf.float32)
