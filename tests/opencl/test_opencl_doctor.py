"""What `tfaccel doctor` says of OpenCL devices beside that they are there."""

import pathlib

import pytest

from tfaccel.cli.doctor._gpu import check_opencl_times
from tfaccel.cli.doctor._surroundings import Packages, Surroundings
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.kernels import (
    Candidate,
    OpenCLDevice,
    OpenCLVariant,
    Ranking,
    Store,
    kernels,
    matmul_spec,
)
from tfaccel.ops.kernels._opencl.variants import chosen, known

DEVICE = OpenCLDevice("Iris Xe", "GPU", 96, 2**30, True, "Intel OpenCL", "3.0 23.43", None)


class Installed(Packages):
    """pyopencl is, or nothing is."""

    def __init__(self, version="2026.1"):
        self._version = version

    def version(self, name):
        return self._version


def said(folder, variant=None, packages=None, devices=lambda: (DEVICE,)):
    here = Surroundings(
        packages=packages or Installed(),
        opencl_devices=devices,
        opencl_variant=lambda device: variant,
        cache_directory=folder,
    )
    return [finding.found for finding in check_opencl_times(here)]


def remember(folder, size, verdict, gain):
    spec = matmul_spec((size, size), (size, size), "float32")
    own = Candidate("opencl", verdict, 0.1, Speedup(gain, gain, gain, 6))
    rest = (
        Candidate(k.name, Outcome.SLOWER)
        for k in kernels("matmul", "forward")
        if k.name != own.kernel
    )
    Store.at(folder).add(Ranking(spec, (own, *rest)))


def test_what_was_measured_is_told(tmp_path):
    assert said(tmp_path) == ["Iris Xe: no product was measured against TensorFlow's kernels yet"]
    remember(tmp_path, 64, Outcome.FASTER, 3.0)
    remember(tmp_path, 32, Outcome.SLOWER, 0.5)
    (found,) = said(tmp_path, OpenCLVariant(tiled=True, group=8))
    for word in ("of 2 products", "8x8", "1 faster", "0.50x to 3.00x", "matmul 64x64"):
        assert word in found, found


def none():
    raise RuntimeError("no platform")


@pytest.mark.parametrize("absent", [{"packages": Installed(None)}, {"devices": none}])
def test_nothing_is_told_where_there_is_no_device(absent, tmp_path):
    assert not said(tmp_path, **absent)


def test_the_variant_is_known_once_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.setenv("TFACCEL_CACHE_DIR", str(tmp_path))
    assert known(DEVICE) is None
    best = chosen(DEVICE, lambda by: None)
    assert known(DEVICE) == best and str(best)
    for path in pathlib.Path(tmp_path, "opencl").iterdir():
        path.write_text("damaged")
    assert known(DEVICE) is None
