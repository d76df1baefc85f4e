"""Which machines are alike, so that measurements of one hold on another."""

import dataclasses
from typing import Any

from tfaccel.compat.tensorflow_private import onednn_is_on
from tfaccel.system.device import Device
from tfaccel.system.json_files import typed

# What tells one class of CPUs from another, as /proc/cpuinfo writes it.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16")
# By what factor a measurement counts less for another instruction set, for the other kernels
_OTHER_FLAGS, _OTHER_KERNELS, _OTHER_DEVICE = 0.5, 0.3, 0.01


@dataclasses.dataclass(frozen=True)
class MachineClass:
    """The class of a machine: the facts that decide which plans win on it."""

    kind: str  # `"CPU"` or `"GPU"`
    flags: tuple[str, ...]  # instruction sets that matter; a GPU's name
    onednn: bool  # whether TensorFlow runs oneDNN's kernels

    @classmethod
    def of(cls, device: Device) -> "MachineClass":
        """The class of the machine that a device is in."""
        if device.kind == "GPU":
            return cls("GPU", (device.name,), False)
        return cls("CPU", tuple(f for f in FLAGS if f in device.flags), bool(onednn_is_on()))

    def likeness(self, other: "MachineClass") -> float:
        """1.0 for the same class, less for others."""
        if self.kind != other.kind:
            return _OTHER_DEVICE
        apart = len({*self.flags} ^ {*other.flags})
        kernels = 1.0 if self.onednn == other.onednn else _OTHER_KERNELS
        return kernels * _OTHER_FLAGS ** min(apart, 3)

    @classmethod
    def from_dict(cls, data: Any) -> "MachineClass":
        """Reads what `dataclasses.asdict` made of one."""
        return typed(cls(data["kind"], tuple(data["flags"]), data["onednn"]))
