"""What happens where OpenCL is not there, or fails at any of its calls."""

import time
import types
import warnings

import fake_opencl as fake
import numpy as np
import pytest
import tensorflow as tf
from fake_opencl import fake_opencl

from tfaccel import ops
from tfaccel.core.unsupported import Refusal
from tfaccel.measure.outcome import Outcome
from tfaccel.ops.kernels import matmul_spec, measure
from tfaccel.ops.kernels._opencl import devices, products
from tfaccel.ops.kernels._opencl.runtime import runtime
from tfaccel.ops.kernels._opencl.variants import Variant
from tfaccel.ops.kernels.implementations import opencl as kernel

fake_opencl = fake_opencl
ON_DEVICE = pytest.mark.skipif(devices.missing() is not None, reason=str(devices.missing()))
A, B = (np.random.default_rng(seed).normal(size=(6, 6)).astype("float32") for seed in (0, 1))
OUT_OF_RESOURCES, INVALID_CONTEXT = -5, -34
FULL = [
    MemoryError("the host's is full"),
    fake.MemoryError(-4),
    fake.RuntimeError(OUT_OF_RESOURCES),
    fake.RuntimeError(-6),
    fake.LogicError(-61),
]
GONE = [fake.LogicError(INVALID_CONTEXT), fake.RuntimeError(-9999), OSError("no such device")]
STARTING = ["Context", "CommandQueue", "MemoryPool"]
BUILDING = ["Program", "build", "Kernel"]
SHARING = ["Buffer", "set_args", "enqueue_nd_range_kernel", "enqueue_map_buffer", "finish"]
COPYING = ["allocate", "enqueue_copy", "enqueue_nd_range_kernel"]


@pytest.fixture
def device(monkeypatch):
    """One that has not failed yet, and runs one variant."""
    fresh = kernel.Device()
    monkeypatch.setattr(kernel, "DEVICE", fresh)
    for name in ("variant", "matrix_variant"):
        monkeypatch.setattr(products, name, lambda at: Variant(tiled=True))
    return fresh


def multiplied():
    """One call, which must be right whoever computes it."""
    found = ops.matmul(A, B, kernel="opencl")
    np.testing.assert_allclose(found, A @ B, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("error", [FULL[2], GONE[0]], ids=str)
@pytest.mark.parametrize(
    ("call", "shares_memory"),
    [
        *((name, True) for name in (*STARTING, *BUILDING, *SHARING)),
        *((name, False) for name in COPYING),
    ],
)
def test_any_call_may_fail(call, shares_memory, error, fake_opencl, device):
    """TensorFlow's op computes it, and one warning says why."""
    opencl = fake_opencl(shares_memory=shares_memory)
    opencl.fail(call, error)
    with pytest.warns(UserWarning, match="clSomething failed") as said:
        for _ in range(3):
            multiplied()
    assert len([w for w in said if "OpenCL" in str(w.message)]) == 1
    assert opencl.calls.count(call) >= (3 if error in FULL else 1)
    assert device.is_lost is (error in GONE)


@pytest.mark.parametrize("error", [*FULL, *GONE], ids=str)
def test_a_device_without_room_is_asked_again(error, fake_opencl, device):
    """One that is gone is not."""
    opencl = fake_opencl()
    opencl.fail("enqueue_nd_range_kernel", error)
    with pytest.warns(UserWarning, match="OpenCL"):
        multiplied()
    opencl.fail(None, None)
    ran = opencl.calls.count("enqueue_nd_range_kernel")
    ops.matmul(A, B, kernel="opencl")
    assert opencl.calls.count("enqueue_nd_range_kernel") == ran + (error in FULL)


def test_what_failed_leaves_nothing_running(fake_opencl, device):
    """The kernel may be writing to arrays that are let go."""
    opencl = fake_opencl()
    opencl.fail("enqueue_map_buffer", FULL[0])
    with pytest.warns(UserWarning, match="OpenCL"):
        multiplied()
    after = opencl.calls[opencl.calls.index("enqueue_map_buffer") :]
    assert after == ["enqueue_map_buffer", "finish", "free_held"]


@ON_DEVICE
def test_a_smaller_call_is_served_after_one_that_was_too_large(device, monkeypatch):
    """pyopencl has OUT_OF_RESOURCES as a RuntimeError."""
    import pyopencl as cl

    def run(queue, kernel, items, group):
        if items[1] > 4 * 16:
            record = cl._cl._ErrorRecord("too large", OUT_OF_RESOURCES, "clEnqueueNDRangeKernel")
            raise cl.RuntimeError(record)
        served.append(items)
        return cl.enqueue_nd_range_kernel(queue, kernel, items, group)

    served = []
    parts = {name: getattr(cl, name) for name in dir(cl) if not name.startswith("__")}
    strict = types.SimpleNamespace(**parts | {"enqueue_nd_range_kernel": run})
    monkeypatch.setattr(runtime(), "cl", strict)
    large = np.ones((600, 8), np.float32)
    with pytest.warns(UserWarning, match="too large") as said:
        for _ in range(2):
            np.testing.assert_array_equal(ops.matmul(large, large.T, kernel="opencl"), 8.0)
            multiplied()
    assert len([w for w in said if "OpenCL" in str(w.message)]) == 1
    assert len(served) == 2


@pytest.mark.parametrize("ask", [ops.opencl_devices, multiplied])
def test_asking_without_a_platform_says_what_to_install(ask, fake_opencl):
    fake_opencl(platforms=0)
    with pytest.raises((RuntimeError, ValueError), match=r"tfaccel\[opencl\].*pocl-binary-dist"):
        ask()


def test_without_a_platform_nothing_is_said(fake_opencl):
    opencl = fake_opencl(platforms=0)
    assert devices.missing().kind is Refusal.DEVICE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            found = measure(matmul_spec((4, 3), (3, 2), "float32"), time.perf_counter, likely=())
    (candidate,) = (c for c in found.candidates if c.kernel == "opencl")
    assert candidate.verdict is Outcome.REFUSED
    assert opencl.calls == ["get_platforms"]  # once, and no more


@pytest.mark.parametrize(
    ("call", "kind"), [("get_platforms", "MISSING"), ("get_devices", "DEVICE")]
)
def test_a_broken_driver_is_no_device(call, kind, fake_opencl):
    error = OSError("libsomething.so: not found") if call == "get_platforms" else fake.Error(-1)
    opencl = fake_opencl()
    opencl.fail(call, error)
    assert devices.missing().kind is Refusal[kind]
    with pytest.raises(ValueError, match="pocl-binary-dist"):
        multiplied()


def test_a_gradient_is_tensorflows_too(fake_opencl, device):
    fake_opencl().fail("enqueue_nd_range_kernel", GONE[0])
    a = tf.constant(A)
    with pytest.warns(UserWarning, match="OpenCL"), tf.GradientTape() as tape:
        tape.watch(a)
        total = tf.reduce_sum(ops.matmul(a, B, kernel="opencl"))
    np.testing.assert_allclose(tape.gradient(total, a), np.ones((6, 6)) @ B.T, rtol=1e-4)
