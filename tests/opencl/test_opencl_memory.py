"""Calls of the kernel `opencl` leave nothing behind: no buffers, no arrays, nothing of the pool."""

import dataclasses
import gc

import numpy as np
import pytest
import tensorflow as tf

from tfaccel import ops
from tfaccel.ops.kernels._opencl import devices, products
from tfaccel.ops.kernels._opencl.runtime import runtime

ON_DEVICE = pytest.mark.skipif(devices.missing() is not None, reason=str(devices.missing()))
SHARED = pytest.mark.parametrize("shares_memory", [True, False])


@pytest.fixture
def step(monkeypatch):
    """A convolution and its gradients, whose arrays have 128 to 512 KiB; all three directions."""

    def make(shares_memory):
        at = runtime()
        facts = dataclasses.replace(at.device, shares_memory=shares_memory)
        monkeypatch.setattr(at, "device", facts)
        x, w = tf.ones((4, 32, 32, 8)), tf.Variable(tf.ones((3, 3, 8, 32)))

        @tf.function(autograph=False)
        def run():
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.reduce_sum(ops.conv2d(x, w, padding="same", kernel="opencl") ** 2)
            return tape.gradient(y, [x, w])

        return run

    return make


def resident_bytes():
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as facts:
        return int(facts.read().split()[1]) * 4096


def grown_bytes(step, warm, calls):
    for _ in range(warm):
        step()
    before, held = resident_bytes(), runtime().pool.managed_bytes
    for _ in range(calls):
        step()
    assert runtime().pool.managed_bytes == held
    return resident_bytes() - before


@ON_DEVICE
@SHARED
def test_a_few_calls_keep_nothing(shares_memory, step):
    # An array of every call would be 100 * 128 KiB at least.
    assert grown_bytes(step(shares_memory), 20, 100) < 6 * 2**20
    assert bool(runtime().pool.managed_bytes) or shares_memory


@ON_DEVICE
@SHARED
@pytest.mark.slow
def test_thousands_of_calls_keep_nothing(shares_memory, step):
    # 5000 calls have three products each: a KiB kept by each of those would be 15 MiB.
    assert grown_bytes(step(shares_memory), 500, 5000) < 6 * 2**20


@ON_DEVICE
def test_results_are_written_in_place():
    """Where host and device share their memory: TensorFlow's result is what the device wrote to."""
    at = runtime()
    if not at.device.shares_memory:
        pytest.skip("the device has memory of its own")
    made = []

    class Watched:
        """Calls the module, and notes what it maps."""

        def __getattr__(self, name):
            return getattr(cl, name)

        def enqueue_map_buffer(self, *args):
            mapped, event = cl.enqueue_map_buffer(*args)
            made.append(mapped.ctypes.data)
            return mapped, event

    cl, at.cl = at.cl, Watched()
    try:
        found = ops.matmul(
            np.ones((37, 5), np.float32), np.ones((5, 3), np.float32), kernel="opencl"
        )
    finally:
        at.cl = cl
    np.testing.assert_array_equal(found, 5.0)
    place = made[-1]  # the first calls found out which variant is the fastest
    assert place % 4096 == 0 and place == np.asarray(memoryview(found)).ctypes.data


@ON_DEVICE
def test_operands_that_do_not_begin_at_64_bytes_are_copied(monkeypatch):
    """Vector loads of unaligned memory end the process under PoCL, CLBlast's among them."""
    at, handed = runtime(), []
    monkeypatch.setattr(at, "device", dataclasses.replace(at.device, shares_memory=True))
    raw = np.zeros(5 * 7 * 4 + 64, np.uint8)
    place = -raw.ctypes.data % 64 + 4
    a = raw[place : place + 5 * 7 * 4].view(np.float32).reshape(1, 5, 7)
    a[...] = np.arange(35).reshape(1, 5, 7)
    b = np.ones((1, 7, 3), np.float32)
    cl = at.cl

    class Watched:
        """Calls the module, and notes where memory begins that it is handed."""

        def __getattr__(self, name):
            return getattr(cl, name)

        def Buffer(self, *args, hostbuf):
            handed.append(hostbuf.ctypes.data % 64)
            return cl.Buffer(*args, hostbuf=hostbuf)

    monkeypatch.setattr(at, "cl", Watched())
    np.testing.assert_allclose(products.matrices(a, b, at), a @ b)
    assert len(handed) >= 3 and not any(handed)
