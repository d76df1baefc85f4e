import json
import pathlib
import sys

import keras
import pytest
import tensorflow as tf

from tfaccel.system import machine
from tfaccel.system.machine import Gpu, NvidiaDriver, isa, machine_facts, nvidia_driver, with_memory

SMI = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\nNVIDIA T4, [N/A], 550.54.15\n"
KEYS = {"cpu", "cores", "isa", "memory_bytes", "gpus"}
KEYS |= {"system", "python", "tensorflow", "keras", "numpy"}


def silent(words):
    return None


def says(output):
    return lambda words: output


@pytest.fixture
def cpuinfo(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name\t: Some Chip 9000\nflags\t\t: fpu fma avx2 amx_bf16\n")
    return path


def test_the_facts_of_a_machine(cpuinfo, monkeypatch):
    monkeypatch.setattr(machine, "tensorflow_gpus", lambda: (Gpu("NVIDIA T4", (7, 5)),))
    facts = machine_facts(cpuinfo, says("NVIDIA T4, 15360, 550.54.15\n"))
    assert set(facts) == KEYS
    assert (facts["cpu"], facts["isa"]) == ("Some Chip 9000", ["avx2", "fma", "amx_bf16"])
    assert facts["gpus"] == [
        {"name": "NVIDIA T4", "compute_capability": [7, 5], "memory_bytes": 15360 * 2**20}
    ]
    assert (facts["tensorflow"], facts["keras"]) == (tf.__version__, keras.__version__)
    assert json.loads(json.dumps(facts)) == facts


def test_this_machine():
    facts = machine_facts()
    assert set(facts) == KEYS
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] is None or facts["memory_bytes"] > 2**28
    assert json.loads(json.dumps(facts)) == facts


def test_what_is_not_known_is_none_and_nothing_raises(monkeypatch):
    def broken(*_):
        raise RuntimeError("no")

    for name in ("read_cpu", "tensorflow_gpus"):
        monkeypatch.setattr(machine, name, broken)
    monkeypatch.delattr("os.sysconf")
    monkeypatch.setattr("platform.platform", broken)
    facts = machine_facts(pathlib.Path("/nowhere"), broken)
    assert set(facts) == KEYS
    unknown = {key: facts[key] for key in ("cpu", "cores", "memory_bytes", "system")}
    assert set(unknown.values()) == {None}
    assert (facts["isa"], facts["gpus"]) == ([], [])


def test_the_instruction_sets_of_an_arm_chip(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\nCPU part\t: 0xd40\n")
    assert isa(path) == ["asimd", "sve", "i8mm", "bf16"]
    assert isa(tmp_path / "absent") == []


def test_memory_is_matched_by_name():
    gpus = (Gpu("NVIDIA T4", (7, 5)), Gpu("NVIDIA H100 80GB HBM3", (9, 0)), Gpu("Other"))
    found = with_memory(gpus, says(SMI))
    assert [gpu.memory_bytes for gpu in found] == [None, 81559 * 2**20, None]
    assert [gpu.compute_capability for gpu in found] == [(7, 5), (9, 0), None]


def test_a_name_that_stands_for_two_sizes_has_none():
    rows = "NVIDIA A100, 40960, 550.1\nNVIDIA A100, 81920, 550.1\n"
    assert with_memory((Gpu("NVIDIA A100"),), says(rows)) == (Gpu("NVIDIA A100"),)
    same = "NVIDIA A100, 40960, 550.1\nNVIDIA A100, 40960, 550.1\n"
    assert with_memory((Gpu("NVIDIA A100"),), says(same))[0].memory_bytes == 40960 * 2**20


def test_without_gpus_nothing_is_run():
    def never(words):
        raise AssertionError(words)

    assert with_memory((), never) == ()


def test_the_driver_by_nvidia_smi(tmp_path):
    gpus = (Gpu("NVIDIA H100 80GB HBM3", None, 81559 * 2**20), Gpu("NVIDIA T4"))
    assert nvidia_driver(tmp_path, says(SMI)) == NvidiaDriver("550.54.15", gpus, True)


@pytest.mark.parametrize("output", [None, "", "No devices were found\n"])
def test_no_driver(tmp_path, output):
    assert nvidia_driver(tmp_path, says(output)) is None


def write_driver(root, devices):
    folder = root / "proc" / "driver" / "nvidia"
    (folder / "gpus" / "0000:01:00.0").mkdir(parents=True)
    (folder / "gpus" / "0000:01:00.0" / "information").write_text(
        "Model: \t\t NVIDIA L4\nIRQ:   \t\t 35\n"
    )
    (folder / "version").write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build\n"
        "GCC version:  gcc version 12.2.0\n"
    )
    (root / "dev").mkdir()
    for device in devices:
        (root / "dev" / device).touch()


@pytest.mark.parametrize(
    ("devices", "reachable"),
    [(["nvidia0", "nvidiactl"], True), (["nvidiactl"], False), ([], False)],
)
def test_the_driver_by_the_kernel_s_listing(tmp_path, devices, reachable):
    write_driver(tmp_path, devices)
    expected = NvidiaDriver("535.104.05", (Gpu("NVIDIA L4"),), reachable)
    assert nvidia_driver(tmp_path, silent) == expected


def test_the_driver_by_its_device_files_alone(tmp_path):
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidia-uvm", "nvidiactl"):
        (tmp_path / "dev" / name).touch()
    found = nvidia_driver(tmp_path, silent)
    assert found == NvidiaDriver(None, (Gpu("NVIDIA GPU"), Gpu("NVIDIA GPU")), True)


def test_running_a_program():
    assert machine.run_program([sys.executable, "-S", "-c", "print('said')"]) == "said\n"
    assert machine.run_program([sys.executable, "-S", "-c", "raise SystemExit(3)"]) is None
    assert machine.run_program(["/nowhere/nvidia-smi"]) is None


def test_a_program_that_hangs(monkeypatch):
    def hangs(words, timeout, **_):
        raise machine.subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(machine.subprocess, "run", hangs)
    assert machine.run_program(["nvidia-smi"]) is None
