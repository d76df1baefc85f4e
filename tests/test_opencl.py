"""The kernel `opencl` as its users meet it. PoCL runs it on the CPU: `make test-opencl`."""

import importlib.util
import resource
import sys
import time
import warnings

import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock

from tfaccel import ops
from tfaccel.core.machine_class import MachineClass
from tfaccel.measure.numerics import relative_error
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.kernels import (
    Candidate,
    Guess,
    Measured,
    Ranking,
    Store,
    convolution_spec,
    guess,
    kernels,
    matmul_spec,
    measure,
)
from tfaccel.ops.kernels._opencl import devices, products
from tfaccel.ops.kernels._opencl.runtime import runtime
from tfaccel.ops.kernels._opencl.variants import VARIANTS, Variant, chosen
from tfaccel.ops.kernels.implementations import opencl as kernel
from tfaccel.passes.kernels._selection import Selection
from tfaccel.passes.kernels.kernels import Kernels

ON_DEVICE = pytest.mark.skipif(devices.missing() is not None, reason=str(devices.missing()))
HERE = MachineClass("CPU", ("avx2",), False)
SPEC = matmul_spec((256, 256), (256, 256), "float32")


@pytest.fixture
def device(monkeypatch):
    """One that has not failed yet, and does not."""
    fresh = type(kernel.DEVICE)()
    monkeypatch.setattr(kernel, "DEVICE", fresh)
    yield fresh
    assert not fresh.has_warned


@pytest.fixture
def no_pyopencl(monkeypatch):
    """An installation without the extra, where importing it is an error."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "pyopencl" else found(name, *a),
    )
    monkeypatch.setitem(sys.modules, "pyopencl", None)
    devices.missing.cache_clear()
    yield
    devices.missing.cache_clear()


def numbers(*shape, seed=0, dtype="float32"):
    return tf.cast(np.random.default_rng(seed).normal(size=shape), dtype)


CALLS = [
    ("conv1d", (2, 9, 3), (3, 3, 4), {"padding": "causal", "dilation_rate": 2}),
    ("conv2d", (3, 11, 9, 4), (3, 2, 4, 37), {"strides": (2, 1), "padding": "same"}),
    ("conv2d", (2, 6, 5, 4), (3, 3, 2, 6), {"padding": "same", "groups": 2}),
    ("conv2d", (1, 7, 7, 3), (3, 3, 3, 5), {"dilation_rate": (1, 2)}),
    ("conv2d", (2, 9, 9, 20), (3, 3, 20, 70), {"data_format": "channels_last"}),
    ("conv2d", (2, 4, 9, 8), (1, 1, 4, 5), {"data_format": "channels_first"}),
    ("conv2d", (0, 6, 5, 4), (3, 3, 4, 6), {}),
    ("depthwise_conv2d", (2, 6, 5, 19), (3, 3, 19, 1), {"strides": 2, "padding": "same"}),
    ("depthwise_conv2d", (2, 6, 5, 4), (3, 3, 4, 3), {"dilation_rate": 2}),
    ("matmul", (37, 50), (50, 45), {}),
    ("matmul", (1, 3), (3, 1), {}),
    ("matmul", (2, 1, 3, 4), (6, 4, 5), {}),
    ("matmul", (3, 5, 4), (5, 6), {"transpose_a": True}),
    ("matmul", (0, 3, 4), (4, 5), {}),
]


def with_gradients(name, x, w, arguments, by):
    """The result, the gradients of a square's sum, and the gradient of the gradient's."""
    x, w = tf.convert_to_tensor(x), tf.convert_to_tensor(w)

    @tf.function(autograph=False)
    def run(x, w):
        with tf.GradientTape() as outer:
            outer.watch([x, w])
            with tf.GradientTape() as inner:
                inner.watch([x, w])
                y = getattr(ops, name)(x, w, **arguments, kernel=by)
                total = tf.reduce_sum(y * y)
            first = inner.gradient(total, [x, w])
            size = tf.reduce_sum(first[0] ** 2)
        return [y, *first, *outer.gradient(size, [x, w])]

    return run(x, w)


@ON_DEVICE
@pytest.mark.parametrize(("name", "x", "w", "arguments"), CALLS)
def test_values_and_gradients_are_tensorflows(name, x, w, arguments, device):
    pair = numbers(*x), numbers(*w, seed=1)
    found = with_gradients(name, *pair, arguments, "opencl")
    wide = (tf.cast(one, tf.float64) for one in pair)
    expected = with_gradients(name, *wide, arguments, "tensorflow")
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape and one.dtype == tf.float32
        assert relative_error(other.numpy(), one.numpy(), floor=1e-3) <= 1e-5


@ON_DEVICE
@pytest.mark.parametrize(
    ("by", "call"),
    [
        *((Variant(tiled=True), CALLS[n]) for n in (1, 2, 9, 11)),
        *((by, CALLS[4]) for by in VARIANTS),
    ],
)
def test_every_variant_computes_the_same(by, call, device, monkeypatch):
    monkeypatch.setattr(products, "variant", lambda at: by)
    monkeypatch.setattr(products, "matrix_variant", lambda at: by)
    test_values_and_gradients_are_tensorflows(*call, device)


def test_the_fastest_variant_is_measured_once(tmp_path, monkeypatch):
    """One that does not run on the device is left out, and another device is another matter."""
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path))
    clock, runs = FakeClock(), []

    def run(by):
        runs.append(by)
        if by.tiled:
            raise RuntimeError("the group is too large")
        clock.advance(1.0 + abs(by.high - 6))

    one = devices.OpenCLDevice("one", "GPU", 8, 2**30, True, "some", "1.0", None)
    other = devices.dataclasses.replace(one, driver="1.1")
    assert chosen(one, run, clock) == Variant(high=6)
    count = len(runs)
    assert chosen(one, run, clock) == Variant(high=6) and len(runs) == count
    assert chosen(other, run, clock) == Variant(high=6) and len(runs) == 2 * count
    for path in (tmp_path / "opencl").iterdir():
        path.write_text("{}", encoding="utf-8")
    assert chosen(one, run, clock) == Variant(high=6) and len(runs) == 3 * count

    def fail(by):
        raise MemoryError("full")

    with pytest.raises(MemoryError):
        chosen(devices.dataclasses.replace(one, name="another"), fail, clock)


@ON_DEVICE
def test_long_sums_are_made_in_parts(device):
    """And a part that is shorter than the others counts as much."""
    x, dy = numbers(2, 45, 46, 3), numbers(2, 43, 44, 5, seed=1)
    spec = convolution_spec("conv2d", x.shape, (3, 3, 3, 5), "float32").along("weight_gradient")
    parts = products.convolution(spec, x.numpy(), dy.numpy(), spec.w)
    assert len(parts) > 1
    one, other = (
        next(k for k in kernels("conv2d", "weight_gradient") if k.name == name)(
            spec, x, dy, tf.constant(spec.w)
        )
        for name in ("opencl", "tensorflow")
    )
    assert relative_error(other.numpy(), one.numpy()) <= 1e-5


@ON_DEVICE
def test_a_batch_of_any_size(device):
    w = numbers(3, 3, 4, 5)

    @tf.function(input_signature=[tf.TensorSpec((None, None, 8, 4))], autograph=False)
    def run(x):
        y = ops.conv2d(x, w, padding="same", strides=2, kernel="opencl")
        assert y.shape.as_list() == [None, None, 4, 5]
        return y

    for n in (3, 1, 0):
        x = numbers(n, 7, 8, 4)
        expected = ops.conv2d(x, w, padding="same", strides=2, kernel="tensorflow")
        assert relative_error(expected.numpy(), run(x).numpy()) <= 1e-5


@ON_DEVICE
def test_devices_and_programs_are_kept(device, monkeypatch):
    pyopencl = pytest.importorskip("pyopencl")
    made, own = [], pyopencl.Kernel
    monkeypatch.setattr(pyopencl, "Kernel", lambda *given: made.append(given) or own(*given))
    (first, *_) = ops.opencl_devices()
    assert first.type in ("GPU", "CPU", "accelerator")
    assert first.compute_units > 0 and first.memory_bytes > 0 and first.name
    a, b = numbers(5, 4), numbers(4, 3)
    ops.matmul(a, b, kernel="opencl")
    built = len(made)
    ops.matmul(numbers(7, 4), b, kernel="opencl")
    assert len(made) == built


@ON_DEVICE
def test_programs_are_built_where_none_can_be_kept(device, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    a, b = numbers(5, 4), numbers(4, 3)
    monkeypatch.setattr("pyopencl.characterize.has_src_build_cache", lambda device: False)
    monkeypatch.setattr(products, "matrix_variant", products.variant)
    for folder in (tmp_path / "file", tmp_path):
        monkeypatch.setenv("TFACCEL_CACHE_DIR", str(folder))
        runtime.cache_clear()
        np.testing.assert_allclose(ops.matmul(a, b, kernel="opencl"), a @ b, rtol=1e-5, atol=1e-6)
    assert list((tmp_path / "opencl").iterdir())


def test_without_the_extra_nothing_is_imported_or_said(no_pyopencl):
    spec = matmul_spec((4, 3), (3, 2), "float32")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = measure(spec, time.perf_counter, likely=())
    (candidate,) = (c for c in found.candidates if c.kernel == "opencl")
    assert candidate.verdict is Outcome.REFUSED


@pytest.mark.parametrize(
    "ask", [ops.opencl_devices, lambda: ops.matmul(numbers(2, 2), numbers(2, 2), kernel="opencl")]
)
def test_asking_without_the_extra_says_what_to_install(ask, no_pyopencl):
    with pytest.raises((RuntimeError, ValueError), match=r"tfaccel\[opencl\].*pocl-binary-dist"):
        ask()


def test_a_name_that_no_kernel_has():
    with pytest.raises(ValueError, match="`kernel` must be one of tensorflow, .*'fastest'"):
        ops.matmul(numbers(2, 2), numbers(2, 2), kernel="fastest")
    with pytest.raises(ValueError, match="`families` must be one of opencl"):
        Kernels(families=("cuda",))


def test_a_kernel_of_one_direction_is_forced_in_that_one():
    x, w = numbers(2, 5, 5, 3), numbers(3, 3, 3, 4)
    found = with_gradients("conv2d", x, w, {}, "flipped")
    expected = with_gradients("conv2d", x, w, {}, "tensorflow")
    for one, other in zip(found, expected, strict=True):
        assert relative_error(other.numpy(), one.numpy()) <= 1e-5


@ON_DEVICE
def test_what_can_not_be_served_says_why(monkeypatch):
    wide = numbers(2, 2, dtype="float64")
    with pytest.raises(ValueError, match="float64"):
        ops.matmul(wide, wide, kernel="opencl")
    two = tf.distribute.MirroredStrategy(["CPU:0"])
    monkeypatch.setattr(type(two), "num_replicas_in_sync", 2)
    with two.scope(), pytest.raises(ValueError, match="use one replica"):
        ops.matmul(numbers(2, 2), numbers(2, 2), kernel="opencl")
    run = tf.function(lambda x: ops.matmul(x, x, kernel="opencl"), jit_compile=True)
    with pytest.raises(ValueError, match="XLA can't compile.*jit_compile"):
        run(numbers(2, 2))


def opencl_of(ranking):
    return next(c for c in ranking.candidates if c.kernel == "opencl")


@ON_DEVICE
def test_it_is_tried_where_asked_for_or_on_a_gpu(device, monkeypatch):
    monkeypatch.setattr(kernel, "has_gpu", lambda: False)
    left = measure(SPEC, time.perf_counter, likely=("opencl",))
    assert opencl_of(left).verdict is Outcome.UNDECIDED and left.lacks(("opencl",))
    asked = measure(SPEC, time.perf_counter, likely=("opencl",), families=("opencl",))
    assert opencl_of(asked).seconds and not asked.lacks(("opencl",))
    monkeypatch.setattr(kernel, "has_gpu", lambda: True)
    assert opencl_of(measure(SPEC, time.perf_counter, likely=("opencl",))).seconds
    small = matmul_spec((8, 8), (8, 8), "float32")
    assert opencl_of(measure(small, time.perf_counter)).verdict is Outcome.UNDECIDED


@ON_DEVICE
@pytest.mark.parametrize(("families", "has_gpu"), [(("opencl",), False), ((), True)])
def test_it_is_tried_though_predictions_left_it_out(
    families, has_gpu, device, monkeypatch, tmp_path
):
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel, "has_gpu", lambda: has_gpu)
    before = measure(SPEC, time.perf_counter, likely=(), families=None)
    assert opencl_of(before).seconds is None
    Store.at().add(before)
    selection = Selection(directions=("forward",), families=families)
    selection.seen = {"layer": [SPEC]}
    selection.measure(0.0, time.perf_counter, time.perf_counter() + 60.0)
    assert opencl_of(selection.ranking(SPEC)).seconds


@ON_DEVICE
def test_a_gpu_is_tried_once_on_calls_like_these(monkeypatch):
    """And after that as it did; nothing is known of it before."""
    monkeypatch.setattr(kernel, "has_gpu", lambda: True)
    other = matmul_spec((256, 512), (512, 256), "float32")

    def tried(known):
        found = guess(SPEC, HERE, [Measured(HERE, other, 0.01, known)])
        assert isinstance(found, Guess) and found.kernels is not None
        return "opencl" in found.kernels

    assert tried({"xla": 0.5}) and tried({"opencl": 2.0}) and not tried({"opencl": 0.1})


@pytest.mark.parametrize(
    ("families", "used"), [(("opencl",), "opencl"), ((), "tensorflow"), (None, "tensorflow")]
)
def test_who_uses_it_where_it_won(families, used, monkeypatch, tmp_path):
    """A training that asked; no predictions, which may be exported, and none of the ops."""
    monkeypatch.setattr(kernel, "missing", lambda: None)
    monkeypatch.setattr(kernel, "has_gpu", lambda: False)
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path))
    won = Candidate("opencl", Outcome.FASTER, 0.1, Speedup(2.0, 1.9, 2.1, 6))
    rest = (
        Candidate(k.name, Outcome.SLOWER)
        for k in kernels("matmul", "forward")
        if k.name != won.kernel
    )
    Store.at().add(Ranking(SPEC, (won, *rest)))
    assert Selection(families=families).choose(SPEC).name == used
    assert ops.api.measured(SPEC).name == "tensorflow"


@ON_DEVICE
@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("device is gone")])
def test_a_device_that_fails_is_stood_in_for(error, monkeypatch):
    """With one warning. It is asked again where only its memory was full."""
    fresh, asked = type(kernel.DEVICE)(), []

    def fail(*arguments):
        asked.append(arguments)
        raise error

    monkeypatch.setattr(kernel, "DEVICE", fresh)
    monkeypatch.setattr(products, "matrices", fail)
    a, b = numbers(5, 4), numbers(4, 3)
    with pytest.warns(UserWarning, match=str(error)) as said:
        for _ in range(3):
            found = ops.matmul(a, b, kernel="opencl")
            np.testing.assert_allclose(found, tf.matmul(a, b), rtol=1e-5)
    assert len([w for w in said if "OpenCL" in str(w.message)]) == 1
    assert len(asked) == (3 if isinstance(error, MemoryError) else 1)


@ON_DEVICE
def test_memory_that_is_not_shared_is_copied(device, monkeypatch):
    """As on a GPU with memory of its own: in buffers that are used again."""
    at = runtime()
    monkeypatch.setattr(at, "device", devices.dataclasses.replace(at.device, shares_memory=False))
    for call in (CALLS[1], CALLS[7], CALLS[9]):
        test_values_and_gradients_are_tensorflows(*call, device)
    held = at.pool.managed_bytes
    for call in (CALLS[1], CALLS[7], CALLS[9]):
        test_values_and_gradients_are_tensorflows(*call, device)
    assert at.pool.managed_bytes == held


@ON_DEVICE
@pytest.mark.slow
def test_memory_does_not_grow(device):
    x, w = numbers(4, 16, 16, 8), numbers(3, 3, 8, 8)
    run = tf.function(lambda: ops.conv2d(x, w, kernel="opencl"), autograph=False)
    for _ in range(500):
        run()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(5000):
        run()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 5000  # KiB: a byte more than one a call would be seen
