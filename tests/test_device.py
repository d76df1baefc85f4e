import pathlib

import pytest
import tensorflow as tf

from tfaccel.system.device import Device, current_device, read_cpu


@pytest.mark.parametrize(
    ("flags", "dtype"),
    [("fpu avx2", None), ("avx2 avx512_bf16", "bfloat16"), ("avx2 amx_bf16 amx_tile", "bfloat16")],
)
def test_a_cpu_from_its_listing(tmp_path, flags, dtype):
    listing = tmp_path / "cpuinfo"
    listing.write_text(f"processor\t: 0\nmodel name\t: Some Chip 9000\nflags\t\t: {flags}\n")
    device = read_cpu(listing)
    assert (device.kind, device.name, device.fast_dtype) == ("CPU", "Some Chip 9000", dtype)
    assert device.flags == frozenset(flags.split())
    assert device.cores >= 1


def test_a_machine_without_a_listing():
    device = read_cpu(pathlib.Path("/nowhere"))
    assert (device.kind, device.flags, device.fast_dtype) == ("CPU", frozenset(), None)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), None), (None, None)],
)
def test_the_16_bit_dtype_of_a_gpu(capability, dtype):
    assert Device("GPU", "x", compute_capability=capability).fast_dtype == dtype


def test_this_machine():
    has_gpu = bool(tf.config.list_physical_devices("GPU"))
    assert current_device().kind == ("GPU" if has_gpu else "CPU")
    assert has_gpu or current_device().cores >= 1
