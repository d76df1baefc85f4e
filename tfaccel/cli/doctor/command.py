"""`tfaccel doctor`: what this machine has, whether TensorFlow uses it, and what to do if not."""

import argparse
from collections.abc import Callable, Iterator, Sequence

import rich.console

from tfaccel.cli._command import Command
from tfaccel.cli.doctor._finding import Diagnosis, Finding, Level
from tfaccel.cli.doctor._gpu import (
    check_cuda,
    check_gpus,
    check_memory_growth,
    check_opencl,
    check_opencl_times,
)
from tfaccel.cli.doctor._machine import (
    check_cpu,
    check_disk,
    check_load,
    check_memory,
    check_threads,
)
from tfaccel.cli.doctor._products import check_products
from tfaccel.cli.doctor._software import (
    check_cache,
    check_extras,
    check_keras,
    check_onednn,
    check_packages,
    check_private_api,
    check_versions,
)
from tfaccel.cli.doctor._surroundings import Surroundings
from tfaccel.system.machine import machine_facts

Check = Callable[[Surroundings], Iterator[Finding]]

# The products come last, and what was measured on such a machine: they start the GPUs, after which
# nothing can be learnt of how TensorFlow would have started them.
CHECKS: tuple[tuple[str, Check], ...] = (
    ("CPU", check_cpu),
    ("memory", check_memory),
    ("disk", check_disk),
    ("threads", check_threads),
    ("load", check_load),
    ("GPU", check_gpus),
    ("CUDA", check_cuda),
    ("GPU memory", check_memory_growth),
    ("OpenCL", check_opencl),
    ("versions", check_versions),
    ("private API", check_private_api),
    ("packages", check_packages),
    ("Keras", check_keras),
    ("oneDNN", check_onednn),
    ("extras", check_extras),
    ("plan cache", check_cache),
    ("products", check_products),
    ("OpenCL", check_opencl_times),
)


def diagnose(here: Surroundings, checks: Sequence[tuple[str, Check]] = CHECKS) -> Diagnosis:
    """Looks at everything. Installs and changes nothing, and never raises: a check that fails is
    a finding, too.
    """
    findings: list[Finding] = []
    with rich.console.Console(stderr=True).status("") as status:
        for area, check in checks:
            status.update(f"Looking at: {area}")
            findings.extend(_guarded(area, check, here))
    cpuinfo = here.root / "proc" / "cpuinfo"
    return Diagnosis(tuple(findings), machine_facts(cpuinfo, here.run))


def _guarded(area: str, check: Check, here: Surroundings) -> Iterator[Finding]:
    """The check's findings, and one more if it breaks off."""
    try:
        yield from check(here)
    except Exception as error:
        said = f"could not be looked at: {type(error).__name__}: {error}"
        remedy = "Please tell tfaccel's developers, with this output."
        yield Finding(area, " ".join(said.split())[:400], Level.WARNING, remedy)


def _define(parser: argparse.ArgumentParser) -> None:
    """Doctor has no flags of its own: it looks at everything."""


COMMAND = Command(_define, lambda args: diagnose(Surroundings()))
