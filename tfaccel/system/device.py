"""What this machine's devices are, as far as choosing a plan needs it."""

import dataclasses
import functools
import os
import platform

import tensorflow as tf

from tfaccel.system.cpu import CPUINFO, cpu_facts, cpu_flags, usable_cores

# The oneDNN kernels that make bfloat16 faster than float32 need one of these:
# https://uxlfoundation.github.io/oneDNN/dev_guide_data_types.html
_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "avx10_2"})
# Tensor Cores: float16 since Volta (7.0), bfloat16 since Ampere (8.0).
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#arithmetic-instructions
_FLOAT16_CAPABILITY = (7, 0)
_BFLOAT16_CAPABILITY = (8, 0)


@dataclasses.dataclass(frozen=True)
class Device:
    """The device that a step runs on."""

    kind: str  # `"CPU"` or `"GPU"`
    name: str  # the chip's name, as the machine tells it
    cores: int = 1  # CPU cores that TensorFlow may use
    # The CPU's instruction set flags (empty where they can't be read).
    flags: frozenset[str] = frozenset()
    compute_capability: tuple[int, int] | None = None  # the GPU's, as (major, minor); None on a CPU

    @property
    def fast_dtype(self) -> str | None:
        """The 16-bit dtype that the chip multiplies faster than float32, if any."""
        if self.kind == "GPU":
            capability = self.compute_capability or (0, 0)
            if capability >= _BFLOAT16_CAPABILITY:
                return "bfloat16"
            return "float16" if capability >= _FLOAT16_CAPABILITY else None
        return "bfloat16" if self.flags & _BFLOAT16_FLAGS else None


def read_cpu(cpuinfo: str | os.PathLike[str] = CPUINFO) -> Device:
    """The CPU, from the kernel's own listing."""
    facts = cpu_facts(cpuinfo)
    name = facts.get("model name") or platform.processor() or platform.machine()
    return Device("CPU", name, usable_cores(), cpu_flags(facts))


@functools.cache
def current_device() -> Device:
    """The device that Keras trains on: the first visible GPU, else the CPU."""
    cpu = read_cpu()
    gpus = tf.config.list_logical_devices("GPU")
    if not gpus:
        return cpu
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
    return Device(
        "GPU",
        details.get("device_name", "unknown GPU"),
        cpu.cores,
        cpu.flags,
        details.get("compute_capability"),
    )
