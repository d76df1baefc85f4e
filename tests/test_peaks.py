import pytest
import tensorflow as tf

from tfaccel.profiling import peaks as measured
from tfaccel.profiling.peaks import GPU_PEAKS, find_gpu, measured_peak, peak_flops
from tfaccel.system.device import Device

ROWS = pytest.mark.parametrize("row", GPU_PEAKS, ids=lambda row: row.name)


@pytest.fixture
def tensor_float_32():
    """Lets a test switch TensorFloat-32, and puts it back."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    yield tf.config.experimental.enable_tensor_float_32_execution
    tf.config.experimental.enable_tensor_float_32_execution(before)


@ROWS
def test_a_row_is_plausible(row):
    assert row.source.startswith("https://")
    assert row.name == row.name.lower()
    float32, tensorfloat32, float16, bfloat16, float64 = row.teraflops.values()
    # 16-bit products are at least twice as fast as float32 ones, dense ones at most 40 times.
    assert 1.9 * float32 < float16 <= 40 * float32
    if tensorfloat32 is None:
        assert bfloat16 is None  # both came with Ampere
    else:
        assert bfloat16 == float16
        # TensorFloat-32 runs at half the 16-bit rate on every chip: a sparse figure in
        # one of the two columns would break this.
        assert float16 / tensorfloat32 == pytest.approx(2.0, rel=0.03)
    if float64 is not None:
        assert float64 <= float32


@ROWS
def test_a_row_finds_itself(row):
    assert find_gpu(f"NVIDIA {row.name.upper()} 80GB") is row


def test_names_are_unique():
    assert len({row.name for row in GPU_PEAKS}) == len(GPU_PEAKS)


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("Tesla V100-SXM2-16GB", "v100 sxm2"),
        ("Tesla V100-PCIE-32GB", "v100 pcie"),
        ("Tesla V100S-PCIE-32GB", "v100s pcie"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 2080 Ti", "rtx 2080 ti"),
        ("NVIDIA A100-SXM4-40GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40", "l40"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX A6000", "rtx a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx 6000 ada"),
        ("NVIDIA GeForce RTX 4090", "rtx 4090"),
        ("NVIDIA H100 80GB HBM3", "h100 hbm3"),
        ("NVIDIA H100 PCIe", "h100 pcie"),
        ("NVIDIA H100 NVL", "h100 nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA H200 NVL", "h200 nvl"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GB200", "gb200"),
    ],
)
def test_matching(device_name, name):
    assert find_gpu(device_name).name == name


@pytest.mark.parametrize(
    "device_name",
    [
        "unknown GPU",
        "",
        "NVIDIA A10G",  # another chip than the A10
        "NVIDIA A100X",
        "NVIDIA H100",  # which of the three?
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",  # a seventh of it
        "GRID A100-10C",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GeForce RTX 2080",
        "Quadro RTX 6000",  # Turing, not Ada
        "Tesla V100-SXM3-32GB",
        "NVIDIA GeForce GTX 1080 Ti",
    ],
)
def test_another_chip_is_not_guessed(device_name):
    assert find_gpu(device_name) is None
    assert peak_flops(Device("GPU", device_name), "float32") is None


def test_a_gpu_multiplies_float32_as_tensorfloat32(tensor_float_32):
    device = Device("GPU", "NVIDIA A100-SXM4-40GB")
    tensor_float_32(True)
    peak = peak_flops(device, "float32")
    assert (peak.flops_per_second, peak.dtype) == (156e12, "tensorfloat32")
    assert "TensorFloat-32" in peak.source
    assert "https://" in peak.source
    tensor_float_32(False)
    peak = peak_flops(device, "float32")
    assert (peak.flops_per_second, peak.dtype) == (19.5e12, "float32")


def test_a_gpu_before_ampere_multiplies_float32_as_float32():
    peak = peak_flops(Device("GPU", "Tesla T4"), "float32")
    assert (peak.flops_per_second, peak.dtype) == (8.1e12, "float32")


def test_a_dtype_that_the_gpu_lacks():
    device = Device("GPU", "Tesla T4")
    assert peak_flops(device, "bfloat16") is None
    assert peak_flops(device, "float16").flops_per_second == 65e12


@pytest.mark.parametrize("dtype", ["mixed_float16", "int8", ""])
def test_a_dtype_that_is_none(dtype):
    with pytest.raises(ValueError, match="`dtype` must be one of .*Received: '" + dtype):
        peak_flops(Device("CPU", "x"), dtype)


class Chip:
    """A chip of a given rate; the first product of each size takes three times as long."""

    def __init__(self, clock, flops_per_second):
        self.clock, self.rate = clock, flops_per_second
        self.sides = []

    def __call__(self, side):
        seconds = 2 * side**3 / self.rate(side)
        self.clock.advance(seconds if side in self.sides else 3 * seconds)
        self.sides.append(side)


def test_the_measured_peak_is_the_best_rate(clock):
    # Small products don't fill the chip, the largest falls out of its cache.
    rates = {256: 2.0**36, 512: 2.0**37, 1024: 2.0**39, 2048: 2.0**38}
    chip = Chip(clock, rates.get)
    peak = measured_peak("float32", clock, chip)
    assert peak.flops_per_second == pytest.approx(2.0**39)
    assert (peak.dtype, peak.source) == ("float32", "measured: 1024x1024 matmul in float32")
    assert chip.sides.count(1024) == 1 + 5


def test_measuring_is_bounded(clock):
    """At 1 GFLOP/s the larger products would take seconds each."""
    chip = Chip(clock, lambda side: 1e9)
    peak = measured_peak("bfloat16", clock, chip)
    assert set(chip.sides) == {256}
    assert clock.now <= 0.5
    assert peak.flops_per_second == pytest.approx(1e9)
    assert peak.source == "measured: 256x256 matmul in bfloat16"


def test_a_chip_too_slow_for_the_budget_is_measured_all_the_same(clock):
    chip = Chip(clock, lambda side: 1e6)
    assert measured_peak("float32", clock, chip).flops_per_second == pytest.approx(1e6)
    assert chip.sides == [256, 256]


def test_a_disturbance_does_not_count(clock):
    slow = iter([1.0, 1.0, 40.0])

    def multiply(side):
        clock.advance(2 * side**3 / 2.0**36 * next(slow, 1.0))

    assert measured_peak("float32", clock, multiply).flops_per_second == pytest.approx(2.0**36)


def test_this_cpu_is_measured_once(clock):
    clock.step = 0.3  # each reading: the budget is used up after one product
    device = Device("CPU", "this one")
    state = tf.random.get_global_generator().state.numpy()
    peak = peak_flops(device, "float32", clock)
    readings = clock.now
    assert peak_flops(device, "float32", clock) is peak
    assert clock.now == readings
    assert peak.flops_per_second == pytest.approx(2 * 256**3 / 0.3)
    assert (tf.random.get_global_generator().state.numpy() == state).all()
    assert measured.peak_flops(device, "float64", clock).dtype == "float64"
