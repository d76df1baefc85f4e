"""NVIDIA GPUs' peak rates, by the maker's word, and which of them a device is."""

import csv
import dataclasses
import pathlib
import re
from collections.abc import Iterator, Mapping

_TERA = 1e12

# What a GPU's name may say besides its model without being another chip: the maker, the
# brand, the board and the memory. A word beyond these ("Laptop", "Ti", "MIG", "GRID")
# makes it another chip, or a part of one.
_NEUTRAL = re.compile(r"nvidia|tesla|geforce|generation|sxm4|pcie|hbm3e?|hbm2e?|\d+gb")


@dataclasses.dataclass(frozen=True)
class GpuPeaks:
    """A GPU's datasheet peaks, dense.

    Attributes:
        name: the words of TensorFlow's `device_name` that make it this chip.
        teraflops: TFLOP/s by dtype, None where the chip has none or they are no use:
            `"float32"` outside of Tensor Cores, `"tensorfloat32"` products of float32
            operands (from Ampere on), `"float16"` and `"bfloat16"` on Tensor Cores, with
            float32 accumulation wherever the source tells the accumulators apart, as
            TensorFlow accumulates in float32, and `"float64"`.
        source: where the maker says so.
    """

    name: str
    teraflops: Mapping[str, float | None]
    source: str

    def flops_per_second(self, dtype: str) -> float | None:
        """The peak for a dtype or `"tensorfloat32"`; None where the chip has none."""
        rate = self.teraflops[dtype]
        return None if rate is None else rate * _TERA


def _read(path: pathlib.Path) -> Iterator[GpuPeaks]:
    lines = path.read_text(encoding="utf-8").splitlines()
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        name, source = row.pop("name"), row.pop("source")
        rates = {dtype: float(rate) if rate else None for dtype, rate in row.items()}
        yield GpuPeaks(name, rates, source)


GPU_PEAKS = tuple(_read(pathlib.Path(__file__).with_name("gpus.csv")))


def find_gpu(device_name: str) -> GpuPeaks | None:
    """The row of `GPU_PEAKS` for a GPU, by TensorFlow's name for it.

    The row with the most words that are all in the name. Any other word in it must say
    nothing of the chip's speed, so that a laptop's or a sliced GPU is not taken for the
    whole card.

    Args:
        device_name: as in `tf.config.experimental.get_device_details`.

    Returns:
        The row, or None for a chip that the table does not have.

    >>> find_gpu("NVIDIA A100-SXM4-40GB").name
    'a100'
    >>> find_gpu("NVIDIA A100-SXM4-40GB MIG 1g.5gb") is None
    True
    """
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    telling = {word for word in words if not _NEUTRAL.fullmatch(word)}
    fitting = [row for row in GPU_PEAKS if telling <= set(row.name.split()) <= words]
    return max(fitting, key=lambda row: len(row.name.split()), default=None)
