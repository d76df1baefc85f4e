"""Products in 16 bits: whether they are right, and how fast."""

import dataclasses
import functools
import math

import pytest
import tensorflow as tf
from machines import H100, NOTE, OK, PROBLEM, WARNING, assert_finding, only

from tfaccel.cli.doctor import _products as products
from tfaccel.cli.doctor._finding import Finding
from tfaccel.cli.doctor._surroundings import TensorFlow
from tfaccel.measure.timing import Speedup
from tfaccel.system.device import Device
from tfaccel.system.machine import Gpu


def test_products_that_are_right():
    for label, product in products.PRODUCTS:
        assert products.tried(label, product, "/device:CPU:0", "bfloat16") is None


def changed(change, in_dtype):
    """A matrix product that goes wrong in one dtype."""

    def product(left, right):
        result = tf.matmul(left, right)
        return change(result) if left.dtype == in_dtype else result

    return product


def fails(_):
    raise tf.errors.UnimplementedError(None, None, "no kernel\nand more lines")


@pytest.mark.parametrize(
    ("change", "in_dtype", "level", "words"),
    [
        (lambda x: x * 1.25, tf.bfloat16, PROBLEM, "in bfloat16 are off by 2"),
        (lambda x: x * math.nan, tf.bfloat16, PROBLEM, "are off by nan"),
        (fails, tf.bfloat16, WARNING, "fail in bfloat16: UnimplementedError: no kernel"),
        (fails, tf.float32, PROBLEM, "fail in float32: UnimplementedError: no kernel"),
    ],
)
def test_products_that_are_wrong(change, in_dtype, level, words):
    product = changed(change, in_dtype)
    found = products.tried("matrix products", product, "/device:CPU:0", "bfloat16")
    assert_finding(found, level, words)
    assert "more lines" not in found.found


def test_sums_in_16_bits_are_seen(rng):
    """The bound is tight enough to tell sums in bfloat16 from sums in float32."""

    def summed_in_16_bits(left, right):
        total = tf.zeros((left.shape[0], right.shape[1]), left.dtype)
        for k in range(left.shape[1]):
            total += left[:, k : k + 1] * right[k : k + 1]
        return total

    found = products.tried("matrix products", summed_in_16_bits, "/device:CPU:0", "bfloat16")
    assert_finding(found, PROBLEM, "more than its rounding explains")


class ScriptedClock:
    """A clock in which each dtype's products take as long as a test says."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        return self.now

    def matmul(self, left, right):
        self.now += self.seconds[left.dtype.name]
        return left


CHIP = Device("CPU", "chip", flags=frozenset({"avx512_bf16"}))
OLD_CHIP = Device("CPU", "old chip")
GPU = Device("GPU", "gpu", compute_capability=(9, 0))


@pytest.mark.parametrize(
    ("device", "ratio", "level", "words"),
    [
        (
            CHIP,
            2.0,
            OK,
            "bfloat16 products are right, and run at 2.00x [2.00-2.00] the speed of float32",
        ),
        (CHIP, 0.25, WARNING, "though the chip has instructions; TF_ENABLE_ONEDNN_OPTS=1"),
        (CHIP, 1.0, NOTE, "no difference to be seen"),
        (GPU, 0.5, WARNING, "though the chip has instructions; Update TensorFlow and the driver"),
        (OLD_CHIP, 0.25, NOTE, "at 0.25x; the chip has no instructions for them; float32"),
        (OLD_CHIP, 1.5, OK, "at 1.50x"),
    ],
)
def test_the_speed_of_products(surroundings, monkeypatch, device, ratio, level, words):
    clock = ScriptedClock({"float32": 2.0**-20, "bfloat16": 2.0**-20 / ratio})
    monkeypatch.setattr(tf, "matmul", clock.matmul)
    here = dataclasses.replace(surroundings(), clock=clock)
    found = products.timed_products(device, "/device:CPU:0", "bfloat16", here)
    assert_finding(found, level, *words.split("; "))
    assert found.area == "products on CPU:0"
    # 2 * 8**3 floating-point operations in 2**-20 s.
    assert "against 1 GFLOP/s" in found.found


def test_products_that_take_long_are_timed_three_times(surroundings, monkeypatch):
    clock = ScriptedClock({"float32": 1.0, "bfloat16": 100.0})
    monkeypatch.setattr(tf, "matmul", clock.matmul)
    here = dataclasses.replace(surroundings(), clock=clock)
    products.timed_products(OLD_CHIP, "/device:CPU:0", "bfloat16", here)
    assert clock.now == pytest.approx(4 * 101.0)


def test_the_rates_are_each_dtype_s_own():
    found = products.verdict(CHIP, "area", "bfloat16", Speedup(2.0, 1.9, 2.1, 6), (4e11, 8e11))
    assert "(800 against 400 GFLOP/s)" in found.found


def test_products_on_this_machine(surroundings):
    found = only(products.check_products(surroundings()))
    assert found.area == "products on CPU:0"
    assert "bfloat16 products are right" in found.found


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "bfloat16")]
)
def test_each_device_is_tried_in_its_dtype(surroundings, monkeypatch, capability, dtype):
    asked = []
    monkeypatch.setattr(products, "tried", lambda *args: asked.append(args))
    finding = Finding("area", "found")
    monkeypatch.setattr(products, "timed_products", lambda *args: finding)
    here = surroundings(gpus=(Gpu("x", capability),), devices=("/device:CPU:0", "/device:GPU:0"))
    assert list(products.check_products(here)) == [finding, finding]
    assert {args[2:] for args in asked} == {
        ("/device:CPU:0", "bfloat16"),
        ("/device:GPU:0", dtype),
    }


def test_what_fails_is_not_timed(surroundings, monkeypatch):
    wrong = Finding("area", "found", PROBLEM, "remedy")
    monkeypatch.setattr(products, "tried", lambda *args: wrong)
    assert list(products.check_products(surroundings())) == [wrong, wrong]


def test_gpu_memory_is_never_taken_whole(surroundings):
    environ = {"TF_FORCE_GPU_ALLOW_GROWTH": "false"}
    here = surroundings(environ=environ, gpus=(H100,))
    here.tensorflow.devices = functools.partial(pytest.fail, "the GPU was started")
    assert_finding(only(products.check_products(here)), NOTE, "not tried")


def test_devices_are_started_with_growing_memory(monkeypatch):
    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu 0", "gpu 1"])
    experimental = tf.config.experimental
    monkeypatch.setattr(experimental, "set_memory_growth", lambda *args: grown.append(args))
    assert any(name.endswith("CPU:0") for name in TensorFlow().devices())
    assert grown == [("gpu 0", True), ("gpu 1", True)]

    def started(gpu, enable):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(experimental, "set_memory_growth", started)
    assert TensorFlow().devices()
