"""Which kernels are worth measuring, by what was measured on calls like them."""

import dataclasses
import math

import pytest

from tfaccel.core.machine_class import MachineClass
from tfaccel.ops import register_kernel, unregister_kernel
from tfaccel.ops.kernels import (
    CallSpec,
    Measured,
    Store,
    convolution_spec,
    guess,
    matmul_spec,
    measure,
    measured_text,
    shipped,
)
from tfaccel.ops.kernels import _likely as likely
from tfaccel.system.device import Device

HERE = MachineClass("CPU", ("avx2",), False)
ELSEWHERE = MachineClass("GPU", ("H100",), False)


def call(channels=64, size=16, window=3, dtype="float32", batch=32):
    shape, filters = (batch, size, size, channels), (window, window, channels, channels)
    return convolution_spec("conv2d", shape, filters, dtype, padding="same")


def known(spec, machine=HERE, seconds=0.01, **speedups):
    return Measured(machine, spec, seconds, speedups)


def test_the_nearest_calls_say_what_is_worth_a_look():
    """A kernel that wins small calls and loses large ones is tried on small ones alone."""
    measured = [
        known(call(16), im2col=2.0, shifted=0.3),
        known(call(512), im2col=0.2, shifted=1.5),
    ]
    small, large = (guess(call(n), HERE, measured) for n in (18, 480))
    assert small.kernels == ("im2col",)
    assert large.kernels == ("shifted",)
    assert 1.0 < small.speedup < 2.0 and 1.0 < large.speedup < 1.5


def test_two_kernels_at_most_the_best_first():
    measured = [known(call(), im2col=1.2, shifted=3.0, xla=2.0)]
    assert guess(call(), HERE, measured).kernels == ("shifted", "xla")


def test_nothing_is_worth_a_look_where_everything_lost():
    found = guess(call(), HERE, [known(call(), im2col=0.5, shifted=0.1)])
    assert found.kernels == ()
    assert found.saved_seconds == 0.0


@pytest.mark.parametrize(
    "measured",
    [
        [],
        [known(call(dtype="bfloat16"), im2col=2.0)],
        [known(call().along("weight_gradient"), im2col=2.0)],
        [known(matmul_spec((32, 64), (64, 64), "float32"), xla=2.0)],
        [known(call(), ELSEWHERE, im2col=2.0)],
        [known(call(2, 4, batch=1), im2col=2.0)],
    ],
    ids=["nothing", "dtype", "direction", "op", "device", "size"],
)
def test_what_is_unlike_tells_nothing(measured):
    """Then all kernels are worth a look."""
    assert guess(call(), HERE, measured).kernels is None


def test_a_kernel_that_refuses_a_call_is_not_worth_a_look():
    """1x1 convolutions are near 3x3 ones in size, but products are no convolution."""
    assert (
        "matmul_1x1" in guess(call(window=1), HERE, [known(call(window=1), matmul_1x1=2.0)]).kernels
    )
    assert guess(call(), HERE, [known(call(), matmul_1x1=2.0)]).kernels == ()


def test_kernels_with_fewer_bits_are_worth_a_look_only_where_allowed():
    chip = Device("CPU", "with 16 bits", flags=frozenset({"avx512_bf16"}))
    spec = dataclasses.replace(call(), device=chip)
    measured = [known(spec, in_bfloat16=3.0)]
    assert guess(spec, HERE, measured).kernels == ()
    assert guess(spec, HERE, measured, reduced=True).kernels == ("in_bfloat16",)


def test_a_users_kernel_is_always_worth_a_look():
    register_kernel("conv2d", name="mine")(lambda spec, x, w: x)
    try:
        found = guess(call(), HERE, [known(call(), im2col=0.1)])
        assert found.kernels == ("mine",) and found.saved_seconds > 0.0
    finally:
        unregister_kernel("conv2d", "mine")


def test_seconds_grow_with_the_work():
    measured = [known(call(64), seconds=0.01, im2col=2.0)]
    double = guess(call(64, batch=64), HERE, measured)
    assert double.seconds == pytest.approx(0.02, rel=0.05)


def test_what_ships_is_of_this_machine_or_another():
    """Every call can be read, and its own shape is the nearest to it."""
    assert len(shipped()) > 500
    for one in shipped()[::50]:
        found = guess(one.spec, one.machine, shipped())
        assert found.kernels is not None and math.isfinite(found.seconds)


def test_measurements_survive_json(tmp_path, monkeypatch):
    text = measured_text([known(call(), im2col=2.0), known(call(8), ELSEWHERE, xla=0.5)])
    (tmp_path / "measured.json").write_text(text)
    monkeypatch.setattr(likely.importlib.resources, "files", lambda package: tmp_path)
    likely.shipped.cache_clear()
    try:
        again = shipped()
    finally:
        likely.shipped.cache_clear()
    assert [(one.machine, one.spec) for one in again] == [(HERE, call()), (ELSEWHERE, call(8))]
    assert again[0].speedups == {"im2col": 2.0}


@pytest.fixture
def small():
    return CallSpec("matmul", "weight_gradient", "float32", (4, 3), (3, 2))


def test_only_what_is_likely_is_measured_and_kept(small, tmp_path):
    """What was left out as unlikely is not asked for again, but by `find`."""
    ticks = iter(range(1, 10_000))
    found = measure(small, lambda: float(next(ticks)), likely=("transposed",))
    tried = {c.kernel for c in found.candidates if c.seconds is not None}
    assert tried == {"tensorflow", "transposed"}
    assert found.is_settled and not found.complete
    store = Store(tmp_path)
    store.add(found)
    store.save()
    assert Store(tmp_path).ranking(small) == found


def test_a_whole_ranking_is_not_replaced_by_a_part(small, tmp_path):
    ticks = iter(range(1, 10_000))
    whole = measure(small, lambda: float(next(ticks)))
    first, second = Store(tmp_path), Store(tmp_path)
    first.add(whole)
    first.save()
    second.add(measure(small, lambda: float(next(ticks)), likely=()))
    second.save()
    assert Store(tmp_path).ranking(small) == whole
