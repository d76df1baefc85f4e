"""What TensorFlow reads from the environment as it starts, where that is known to help here."""

import os
import sys
from collections.abc import Mapping

from tfaccel.system.cpu import CPUINFO, cpu_facts, cpu_flags

ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
PRELOAD = "LD_PRELOAD"
# With one of these TensorFlow takes oneDNN's kernels by itself: tensorflow/core/util/port.cc.
_TAKES_ONEDNN = frozenset(
    {"avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16"}
)
_X86 = ("x86_64", "AMD64")


def has_onednn(machine: str = "", system: str = "") -> bool:
    """Whether TensorFlow's builds for such a machine have oneDNN's kernels beside Eigen's."""
    return (machine or machine_type()) in _X86 and (system or sys.platform).lower() != "darwin"


def machine_type() -> str:
    """As `platform.machine()`, which a program under `tfaccel run` need not wait for."""
    uname = getattr(os, "uname", None)
    return uname().machine if uname else os.environ.get("PROCESSOR_ARCHITECTURE", "")


def preset(
    cpuinfo: str | os.PathLike[str] = CPUINFO, machine: str = "", system: str = ""
) -> dict[str, str]:
    """What is set for any program on this machine.

    oneDNN's kernels, on x86 chips with AVX2 where TensorFlow leaves them off: with them the stock
    steps that were measured there take between a third of the time and 3 % more (BUILD_NOTES.md).

    Args:
        cpuinfo: the kernel's listing.
        machine, system: as `platform` or `sys.platform` names them; empty for this machine's.
    """
    flags = cpu_flags(cpu_facts(cpuinfo)) if has_onednn(machine, system) else frozenset()
    return {ONEDNN: "1"} if "avx2" in flags and not flags & _TAKES_ONEDNN else {}


def takes_onednn(environ: Mapping[str, str], cpuinfo: str | os.PathLike[str] = CPUINFO) -> bool:
    """Whether TensorFlow runs with oneDNN's kernels in a process of this environment."""
    if ONEDNN in environ:
        return environ[ONEDNN] != "0"
    return bool(cpu_flags(cpu_facts(cpuinfo)) & _TAKES_ONEDNN)


def additions(kept: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, str]:
    """What is to be set: what a sweep kept for this program, else what suits the machine.

    A variable that the user has set stays as it is, even where it is empty.
    """
    wanted = {**preset(), **kept}
    return {name: value for name, value in wanted.items() if name not in environ}


def apply(added: Mapping[str, str]) -> None:
    """Sets the variables; begins this process anew where one of them preloads a library.

    The loader reads LD_PRELOAD when a process begins, so this one becomes another with the same
    words, which finds the variable set. Where that can't be done, the program runs without.
    """
    os.environ.update(added)
    if PRELOAD not in added:
        return
    try:
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:
        del os.environ[PRELOAD]
