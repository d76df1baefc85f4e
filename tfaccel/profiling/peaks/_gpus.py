"""NVIDIA GPUs' peak rates, by the maker's word, and which of them a device is."""

import dataclasses
import re

_TERA = 1e12

# What a GPU's name may say besides its model without being another chip: the maker, the
# brand, the board and the memory. A word beyond these ("Laptop", "Ti", "MIG", "GRID")
# makes it another chip, or a part of one.
_NEUTRAL = re.compile(r"nvidia|tesla|geforce|generation|sxm4|pcie|hbm3e?|hbm2e?|\d+gb")

_VOLTA = (
    "https://images.nvidia.com/content/technologies/volta/pdf/"
    "volta-v100-datasheet-update-us-1165301-r5.pdf"
)
_T4 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/tesla-t4/"
    "t4-tensor-core-datasheet-951643.pdf"
)
_TURING = (
    "https://images.nvidia.com/aem-dam/en-zz/Solutions/design-visualization/technologies/"
    "turing-architecture/NVIDIA-Turing-Architecture-Whitepaper.pdf"
)
_A100 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/"
    "nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
)
_A10 = "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
_A30 = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/data-center/products/a30-gpu/pdf/"
    "a30-datasheet.pdf"
)
_A40 = "https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
_GA102 = (
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
_L4 = "https://resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet"
_L40 = "https://images.nvidia.com/content/Solutions/data-center/vgpu-L40-datasheet.pdf"
_L40S = "https://resources.nvidia.com/en-us-l40s/l40s-datasheet-28413"
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_RTX_6000_ADA = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/design-visualization/rtx-6000/"
    "proviz-print-rtx6000-datasheet-web-2504660.pdf"
)
_H100 = "https://resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/"
_BLACKWELL = "https://nvdam.widen.net/s/wwnsxrhm2w/blackwell-datasheet-3384703"
_RTX_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf"
)


@dataclasses.dataclass(frozen=True)
class GpuPeaks:
    """A GPU's datasheet peaks, dense, in TFLOP/s.

    Attributes:
        name: the words of TensorFlow's `device_name` that make it this chip.
        float32: outside of Tensor Cores.
        tensorfloat32: TensorFloat-32 products of float32 operands; None before Ampere.
        float16, bfloat16: Tensor Core products, with float32 accumulation wherever the
            source tells the accumulators apart, as TensorFlow accumulates in float32.
        float64: by Tensor Cores where the chip has such; None where it is no use.
        source: where the maker says so.
    """

    name: str
    float32: float
    tensorfloat32: float | None
    float16: float
    bfloat16: float | None
    float64: float | None
    source: str

    def flops_per_second(self, dtype: str) -> float | None:
        """The peak for a dtype or `"tensorfloat32"`; None where the chip has none."""
        teraflops = getattr(self, dtype)
        return None if teraflops is None else teraflops * _TERA


# Dense figures. Datasheets print the double, "with sparsity", for Ampere and later: where
# a sheet has that figure alone (H100, H200, L4, Blackwell), half of it is here. RTX 2080 Ti:
# the reference card. RTX 6000 Ada: its "tensor performance" of 1457 is FP8 with sparsity,
# four times FP16. A chip whose figures could not be confirmed is left out, not guessed.
GPU_PEAKS: tuple[GpuPeaks, ...] = (
    #        name            float32  TF32 float16 bfloat16 float64  source
    GpuPeaks("v100 sxm2", 15.7, None, 125.0, None, 7.8, _VOLTA),
    GpuPeaks("v100 pcie", 14.0, None, 112.0, None, 7.0, _VOLTA),
    GpuPeaks("v100s pcie", 16.4, None, 130.0, None, 8.2, _VOLTA),
    GpuPeaks("t4", 8.1, None, 65.0, None, None, _T4),
    GpuPeaks("rtx 2080 ti", 13.4, None, 53.8, None, None, _TURING),
    GpuPeaks("titan rtx", 16.3, None, 130.5, None, None, _TURING),
    GpuPeaks("a100", 19.5, 156.0, 312.0, 312.0, 19.5, _A100),
    GpuPeaks("a10", 31.2, 62.5, 125.0, 125.0, None, _A10),
    GpuPeaks("a30", 10.3, 82.0, 165.0, 165.0, 10.3, _A30),
    GpuPeaks("a40", 37.4, 74.8, 149.7, 149.7, None, _A40),
    GpuPeaks("rtx a6000", 38.7, 77.4, 154.8, 154.8, None, _GA102),
    GpuPeaks("rtx 3090", 35.6, 35.6, 71.0, 71.0, None, _GA102),
    GpuPeaks("l4", 30.3, 60.0, 121.0, 121.0, None, _L4),
    GpuPeaks("l40", 90.5, 90.5, 181.05, 181.05, None, _L40),
    GpuPeaks("l40s", 91.6, 183.0, 362.05, 362.05, None, _L40S),
    GpuPeaks("rtx 6000 ada", 91.1, 182.1, 364.2, 364.2, None, _RTX_6000_ADA),
    GpuPeaks("rtx 4090", 82.6, 82.6, 165.2, 165.2, None, _ADA),
    GpuPeaks("h100 hbm3", 67.0, 494.5, 989.5, 989.5, 67.0, _H100),
    GpuPeaks("h100 pcie", 51.0, 378.0, 756.5, 756.5, 51.0, _H100),
    GpuPeaks("h100 nvl", 60.0, 417.5, 835.5, 835.5, 60.0, _H100),
    GpuPeaks("h200", 67.0, 494.5, 989.5, 989.5, 67.0, _H200),
    GpuPeaks("h200 nvl", 60.0, 417.5, 835.5, 835.5, 60.0, _H200),
    GpuPeaks("b200", 75.0, 1100.0, 2250.0, 2250.0, 37.0, _BLACKWELL),
    GpuPeaks("gb200", 80.0, 1250.0, 2500.0, 2500.0, 40.0, _BLACKWELL),
    GpuPeaks("rtx 5090", 104.8, 104.8, 209.5, 209.5, None, _RTX_BLACKWELL),
)


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
