"""CLBlast as one more way to compute matrix products on an OpenCL device."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from tfaccel import ops
from tfaccel.measure.numerics import relative_error
from tfaccel.ops.kernels._opencl import clblast, devices, products
from tfaccel.ops.kernels._opencl.runtime import runtime
from tfaccel.ops.kernels._opencl.variants import CLBLAST, Variant, chosen
from tfaccel.ops.kernels.implementations import opencl as kernel

INSTALLED = pytest.mark.skipif(
    devices.missing() is not None or importlib.util.find_spec("pyclblast") is None,
    reason="pyclblast is not installed, or there is no OpenCL device",
)
DEVICE = devices.OpenCLDevice("one", "GPU", 8, 2**30, True, "some", "1.0", None)


def numbers(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


@INSTALLED
@pytest.mark.parametrize(
    ("a", "b"), [((37, 50), (50, 45)), ((1, 3), (3, 1)), ((2, 1, 3, 4), (6, 4, 5))]
)
@pytest.mark.parametrize("shares_memory", [True, False])
def test_values_and_gradients_are_tensorflows(a, b, shares_memory, monkeypatch):
    at, fresh = runtime(), kernel.Device()
    facts = devices.dataclasses.replace(at.device, shares_memory=shares_memory)
    monkeypatch.setattr(at, "device", facts)
    monkeypatch.setattr(products, "matrix_variant", lambda at: CLBLAST)
    monkeypatch.setattr(kernel, "DEVICE", fresh)
    found = []
    for name in ("opencl", "tensorflow"):
        x, w = tf.constant(numbers(*a)), tf.constant(numbers(*b))
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = ops.matmul(x, w, kernel=name)
            total = tf.reduce_sum(y * y)
        found.append([y, *tape.gradient(total, [x, w])])
    for one, other in zip(*found, strict=True):
        assert relative_error(other.numpy(), one.numpy(), floor=1e-3) <= 1e-5
    assert not fresh.has_warned


@INSTALLED
def test_it_is_used_where_it_is_faster(monkeypatch):
    """And convolutions are computed by tfaccel's own programs whatever it does."""
    used = []
    monkeypatch.setattr(products, "chosen", lambda *a, among=(), **k: used.append(among) or CLBLAST)
    monkeypatch.setattr(products, "variant", lambda at: Variant())
    products.matrix_variant.cache_clear()
    try:
        assert products.matrix_variant(runtime()) == CLBLAST
    finally:
        products.matrix_variant.cache_clear()
    assert used == [(Variant(), CLBLAST)]


def test_without_it_tfaccels_own_is_used(monkeypatch):
    monkeypatch.setattr(clblast, "is_installed", lambda: False)
    monkeypatch.setattr(products, "variant", lambda at: Variant(high=6))
    assert products.matrix_variant(object()) == Variant(high=6)


def test_what_was_measured_with_it_says_nothing_of_what_was_without(monkeypatch, tmp_path):
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path))
    runs = []
    among = (Variant(), CLBLAST)
    assert chosen(DEVICE, runs.append, among=among) in among
    count = len(runs)
    assert chosen(DEVICE, runs.append, among=among) in among and len(runs) == count
    assert not chosen(DEVICE, runs.append).is_clblast and len(runs) > count
