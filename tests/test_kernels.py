"""Every kernel against plain NumPy: a kernel gets these tests by its line in the table."""

import ast
import dataclasses
import pathlib

import numpy as np
import products
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tfaccel.compat import onednn
from tfaccel.measure.numerics import relative_error
from tfaccel.ops.kernels import DIRECTIONS, KERNELS, OPS, REFERENCE
from tfaccel.ops.kernels._opencl.devices import missing as opencl_missing
from tfaccel.ops.kernels._spec import CallSpec

ROOT = pathlib.Path(__file__).parent.parent
EVERY_KERNEL = pytest.mark.parametrize(
    "kernel", KERNELS, ids=lambda k: f"{k.op}-{k.direction}-{k.name}"
)


@pytest.fixture(autouse=True)
def onednn_may_be_named(monkeypatch):
    """TensorFlow turns oneDNN on by itself on some CPUs; the kernels are the same there."""
    monkeypatch.setattr(onednn, "obstacle", onednn.missing)


def skip_where_missing(kernel):
    if kernel.name == "onednn" and onednn.missing():
        pytest.skip(onednn.missing())
    if kernel.name == "opencl" and opencl_missing():
        pytest.skip(str(opencl_missing()))


def bounded(count):
    """The same few examples in every run; XLA takes long for each."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )


def operands(spec, seed):
    rng = np.random.default_rng(seed)
    a, b = (tf.cast(rng.normal(size=shape), spec.dtype) for shape in spec.operands)
    return a, b


def arguments(spec, a, b):
    return (a, b) if spec.direction == "forward" else (a, b, tf.constant(spec.result, tf.int32))


def assert_close(kernel, spec, found, expected):
    assert found.dtype == spec.dtype
    assert tuple(found.shape) == spec.result
    error = relative_error(expected, tf.cast(found, tf.float64).numpy(), floor=1e-3)
    assert error <= kernel.tolerance[spec.dtype], f"{spec}: off by {error}"


@EVERY_KERNEL
@pytest.mark.parametrize(
    "times", [pytest.param(1, id="few"), pytest.param(3, id="many", marks=pytest.mark.slow)]
)
def test_a_kernel_agrees_with_numpy(kernel, times):
    skip_where_missing(kernel)

    @bounded(times * (1 if kernel.jit_compile or kernel.op in ("conv1d", "conv3d") else 2))
    @given(products.calls(kernel.op, kernel.direction), st.integers(0, 99))
    def check(spec, seed):
        assume(kernel.unsupported(spec) is None)
        a, b = operands(spec, seed)
        run = kernel.function(spec) if kernel.jit_compile else lambda *t: kernel.fn(spec, *t)
        found = run(*arguments(spec, a, b))
        assert_close(
            kernel, spec, found, products.exact(spec, *(np.asarray(t, "float64") for t in (a, b)))
        )

    check()


@pytest.mark.parametrize(
    "kernel",
    # The code for one and three dimensions is that for two.
    [kernel for kernel in KERNELS if kernel.op not in ("conv1d", "conv3d")],
    ids=lambda k: f"{k.op}-{k.direction}-{k.name}",
)
def test_a_kernel_takes_sizes_that_are_not_known_while_tracing(kernel):
    skip_where_missing(kernel)

    @bounded(1)
    @given(products.calls(kernel.op, kernel.direction))
    def check(spec):
        blank = products.with_unknown_sizes(spec)
        assume(kernel.unsupported(blank) is None and 0 not in spec.x)
        a, b = operands(spec, 3)

        @tf.function(
            input_signature=[tf.TensorSpec(shape, spec.dtype) for shape in blank.operands],
            autograph=False,
        )
        def traced(a, b):
            shape = () if spec.direction == "forward" else (tf.constant(spec.result, tf.int32),)
            return kernel(blank, a, b, *shape)

        expected = products.exact(spec, *(np.asarray(t, "float64") for t in (a, b)))
        assert_close(kernel, spec, traced(a, b), expected)

    check()


def test_gradients_in_bfloat16_leave_strides_over_the_image_to_float32():
    """oneDNN leaves what memory held in the taps of the window that meet no input."""
    kernel = next(k for k in KERNELS if (k.name, k.op) == ("in_bfloat16", "conv2d"))
    kernel = dataclasses.replace(kernel, direction="weight_gradient")
    device = products.DEVICES[0]
    wide, narrow = (
        CallSpec(
            "conv2d",
            "weight_gradient",
            "float32",
            (None, size, 4, 3),
            (3, 3, 3, 5),
            (2, 2),
            "same",
            (1, 1),
            device=device,
        )
        for size in (2, 1)
    )
    assert kernel.unsupported(wide) is None
    assert kernel.unsupported(narrow) is not None
    assert kernel.unsupported(narrow.along("forward")) is None


def test_the_table():
    names = [(kernel.op, kernel.direction, kernel.name) for kernel in KERNELS]
    assert len(set(names)) == len(names)
    for op in OPS:
        for direction in DIRECTIONS:
            first = next(k for k in KERNELS if (k.op, k.direction) == (op, direction))
            assert first.name == REFERENCE
    for kernel in KERNELS:
        assert kernel.summary and kernel.source.strip(), kernel.name
        assert set(kernel.tolerance) == {"float16", "bfloat16", "float32", "float64"}


def test_every_kernel_has_a_row_in_the_docs():
    text = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    for name in {kernel.name for kernel in KERNELS}:
        assert f"| `{name}` |" in text, f"docs/kernels.md has no row on {name}"


def test_kernels_never_import_each_other():
    for path in (ROOT / "tfaccel" / "ops" / "kernels" / "implementations").glob("[a-z]*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom):
                continue
            if node.module == "tfaccel.ops.kernels":
                assert all(alias.name.startswith("_") for alias in node.names), path
            elif (node.module or "").startswith("tfaccel.ops.kernels."):
                assert node.module.rpartition(".")[2].startswith("_"), path


def test_a_kernel_file_is_in_the_table():
    files = {
        path.stem
        for path in (ROOT / "tfaccel" / "ops" / "kernels" / "implementations").glob("[a-z]*.py")
    }
    assert files <= {kernel.name for kernel in KERNELS}


def test_a_refusal_has_a_cause():
    """Every kernel but TensorFlow's own refuses something, or serves all; it never raises."""

    @bounded(40)
    @given(st.sampled_from(OPS).flatmap(lambda op: products.calls(op, "forward")))
    def check(spec):
        for kernel in KERNELS:
            if kernel.op == spec.op:
                unsupported = kernel.unsupported(spec.along(kernel.direction))
                assert unsupported is None or unsupported.cause

    check()


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_call_knows_its_shapes(direction):
    @bounded(30)
    @given(st.sampled_from(OPS).flatmap(lambda op: products.calls(op, direction)))
    def check(spec):
        a, b = (np.zeros(shape) for shape in spec.operands)
        assert products.exact(spec, a, b).shape == spec.result
        assert spec.fits(products.with_unknown_sizes(spec))
        assert not spec.fits(dataclasses.replace(spec, x=(*spec.x[:-1], spec.x[-1] + 1)))
        operands = sum(int(np.prod(shape)) for shape in (*spec.operands, spec.result))
        assert spec.bytes == operands * tf.as_dtype(spec.dtype).size

    check()
