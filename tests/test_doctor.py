import configparser
import dataclasses
import functools
import io
import json
import math
import pathlib
import re
import types

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from packaging.requirements import Requirement

from tfaccel.cli import main
from tfaccel.cli.doctor import _products as products
from tfaccel.cli.doctor import command
from tfaccel.cli.doctor._finding import Diagnosis, Finding, Level
from tfaccel.cli.doctor._gpu import (
    check_cuda,
    check_gpus,
    check_memory_growth,
    check_opencl,
)
from tfaccel.cli.doctor._machine import (
    check_cpu,
    check_disk,
    check_load,
    check_memory,
    check_threads,
)
from tfaccel.cli.doctor._software import (
    EXTRAS,
    check_cache,
    check_extras,
    check_keras,
    check_onednn,
    check_packages,
    check_versions,
    unmet,
)
from tfaccel.cli.doctor._surroundings import Packages, Surroundings, TensorFlow
from tfaccel.compat import tensorflow_private
from tfaccel.measure.timing import Speedup
from tfaccel.ops.kernels import OpenCLDevice
from tfaccel.system.cgroup import cpu_quota_cores, memory_limit_bytes
from tfaccel.system.device import Device
from tfaccel.system.machine import Gpu

ROOT = pathlib.Path(__file__).parent.parent
OK, NOTE, WARNING, PROBLEM = Level
GIB = 2**30
H100 = Gpu("NVIDIA H100", (9, 0))
SMI = "NVIDIA H100, 81559, {}\n"
X86_FLAGS = "fpu fma avx2 avx512f avx512_bf16"


class FakePackages(Packages):
    def __init__(self, versions=None, requirements=None):
        self.versions, self.requirements = versions or {}, requirements or {}

    def version(self, name):
        return self.versions.get(name)

    def requires(self, name):
        return self.requirements.get(name, ())


@dataclasses.dataclass
class FakeTensorFlow(TensorFlow):
    """A TensorFlow that says what a test has it say, and runs on the real CPU."""

    said: dict = dataclasses.field(default_factory=dict)

    def versions(self):
        newest = {"Python": "3.12.1", "TensorFlow": "2.21.0", "Keras": "3.15.1", "NumPy": "2.4.6"}
        return newest | self.said.get("versions", {})

    def keras_config(self):
        usual = {
            "backend": "tensorflow",
            "floatx": "float32",
            "image_data_format": "channels_last",
        }
        return usual | self.said.get("keras_config", {})

    def build(self):
        return self.said.get("build", {"is_cuda_build": False})

    def onednn(self):
        return self.said.get("onednn", True)

    def lacks(self):
        return self.said.get("lacks", {})

    def threads(self):
        return self.said.get("threads", (0, 0))

    def gpus(self):
        return self.said.get("gpus", ())

    def memory_grows(self):
        return self.said.get("memory_grows", False)

    def devices(self):
        return self.said.get("devices", ("/device:CPU:0",))


CUDA = {"is_cuda_build": True, "cuda_version": "12.5.1", "cudnn_version": "9"}


@pytest.fixture
def surroundings(tmp_path):
    """Makes surroundings in which all is well, but for what a test changes."""
    write(tmp_path, "proc/cpuinfo", f"model name\t: Some Chip 9000\nflags\t\t: {X86_FLAGS}\n")
    write(tmp_path, "proc/meminfo", "MemTotal:  16777216 kB\nMemAvailable:  8388608 kB\n")

    def make(files=(), environ=(), packages=None, run=lambda words: None, **said):
        for name, text in dict(files).items():
            write(tmp_path, name, text)
        return Surroundings(
            root=tmp_path,
            environ=dict(environ),
            packages=packages or FakePackages({"tensorflow": "2.21.0"}),
            tensorflow=FakeTensorFlow(said),
            run=run,
            cores=4,
            machine_cores=8,
            load=lambda: 0.5,
            free_bytes=lambda path: 5 * GIB,
            cache_directory=tmp_path / "plans",
            working_directory=tmp_path,
            sizes={"CPU": 8, "GPU": 8},
        )

    return make


def write(root, name, text):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def only(findings):
    (finding,) = findings
    return finding


def assert_finding(finding, level, *words):
    assert finding.level is level, finding
    for word in words:
        assert word in finding.found + finding.remedy, finding


# The findings and their three forms.


@pytest.mark.parametrize(
    ("level", "remedy"), [(OK, "do"), (NOTE, ""), (WARNING, ""), (PROBLEM, "")]
)
def test_whatever_is_not_well_has_a_remedy(level, remedy):
    with pytest.raises(ValueError, match="`remedy` must be given"):
        Finding("area", "found", level, remedy)


DIAGNOSIS = Diagnosis(
    (
        Finding("CPU", "a [chip] | 2 cores"),
        Finding("disk", "little room", NOTE, "tidy up"),
        Finding("disk", "less room", NOTE, "tidy up"),
        Finding("GPU", "unseen", PROBLEM, "pip install 'tfaccel[gpu]'"),
    ),
    {"cpu": "a chip"},
)


def test_a_diagnosis_as_json():
    data = json.loads(DIAGNOSIS.to_json())
    assert data["findings"][3] == {
        "area": "GPU",
        "level": "problem",
        "found": "unseen",
        "remedy": "pip install 'tfaccel[gpu]'",
    }
    assert (data["schema"], data["machine"]) == (1, {"cpu": "a chip"})
    assert data["summary"] == "1 problem, 2 notes."


def test_a_diagnosis_as_markdown():
    lines = DIAGNOSIS.to_markdown().splitlines()
    assert lines[2] == "| CPU | ok | a [chip] \\| 2 cores |  |"
    assert lines[5] == "| GPU | problem | unseen | pip install 'tfaccel[gpu]' |"
    assert lines[-1] == "1 problem, 2 notes."


@pytest.mark.parametrize("width", [40, 140])
def test_a_diagnosis_as_a_table(width):
    console = rich.console.Console(width=width, record=True, file=io.StringIO())
    console.print(DIAGNOSIS)
    text = console.export_text()
    # Brackets are text and not markup.
    assert "a [chip] | 2 cores" in text
    assert "'tfaccel[gpu]'" in text
    assert all(len(line) <= width for line in text.splitlines())


@pytest.mark.parametrize(("count", "status"), [(3, 0), (4, 1)])
def test_a_problem_makes_the_exit_code(count, status):
    assert Diagnosis(DIAGNOSIS.findings[:count], {}).exit_code == status


def test_nothing_to_mend():
    assert Diagnosis(DIAGNOSIS.findings[:1], {}).summary() == "Nothing to mend."


# CPU, memory, disk.


def test_a_cpu(surroundings):
    found = only(check_cpu(surroundings()))
    assert_finding(found, OK, "Some Chip 9000: avx2, fma, avx512f, avx512_bf16")


def test_an_old_cpu(surroundings):
    here = surroundings({"proc/cpuinfo": "model name : Old\nflags : fpu fma\n"})
    assert_finding(only(check_cpu(here)), WARNING, "Old has no AVX2 (fma)")


def test_an_arm_cpu(surroundings):
    here = surroundings({"proc/cpuinfo": "processor : 0\nFeatures : fp asimd bf16\n"})
    assert_finding(only(check_cpu(here)), OK, "asimd, bf16")


def test_a_cpu_that_tells_nothing(surroundings, tmp_path):
    here = surroundings()
    (tmp_path / "proc" / "cpuinfo").unlink()
    assert_finding(only(check_cpu(here)), NOTE, "can't be read")


def test_memory(surroundings):
    assert_finding(only(check_memory(surroundings())), OK, "16.0 GiB", "8.00 GiB of it free")


def test_memory_that_is_short(surroundings):
    here = surroundings({"proc/meminfo": "MemTotal:  16777216 kB\nMemAvailable:  1000000 kB\n"})
    assert_finding(only(check_memory(here)), WARNING, "977 MiB of it free")


def test_memory_that_a_container_limits(surroundings):
    group = {"proc/self/cgroup": "0::/pod\n", "sys/fs/cgroup/pod/memory.max": f"{GIB // 2}\n"}
    group["sys/fs/cgroup/pod/memory.current"] = f"{GIB // 4}\n"
    found = only(check_memory(surroundings(group)))
    assert_finding(found, WARNING, "this process may take 512 MiB")


def test_memory_where_there_is_no_listing(surroundings, tmp_path):
    here = surroundings()
    (tmp_path / "proc" / "meminfo").unlink()
    assert_finding(only(check_memory(here)), OK, "of memory")


def test_disks(surroundings):
    findings = list(check_disk(surroundings()))
    assert [finding.level for finding in findings] == [OK, OK]
    full = dataclasses.replace(surroundings(), free_bytes=lambda path: GIB // 10)
    for found in check_disk(full):
        assert_finding(found, WARNING, "102 MiB free", "Make room")


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path):
    here = Surroundings(cache_directory=tmp_path / "not" / "yet", working_directory=tmp_path)
    cache = list(check_disk(here))[1]
    assert str(tmp_path / "not" / "yet") in cache.found


# Threads and control groups.


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # A limit above holds below.
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "100000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "300000 100000\n",
            },
            1.0,
        ),
        # The path is the host's, and only the top is mounted.
        ({"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "4:memory:/\n3:cpu,cpuacct:/pod\n0::/\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/pod/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        ({"proc/self/cgroup": "nonsense\n", "sys/fs/cgroup/cpu.max": "\n"}, None),
    ],
    ids=["none", "max", "version 2", "above", "container", "version 1", "nonsense"],
)
def test_the_quota_of_a_control_group(tmp_path, files, cores):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert cpu_quota_cores(tmp_path) == cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "max\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1024\n"}, 1024),
        (
            {
                "proc/self/cgroup": "4:memory:/pod\n",
                "sys/fs/cgroup/memory/pod/memory.limit_in_bytes": "2048\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
            },
            2048,
        ),
    ],
    ids=["none", "max", "version 2", "version 1"],
)
def test_the_memory_of_a_control_group(tmp_path, files, limit):
    for name, text in files.items():
        write(tmp_path, name, text)
    assert memory_limit_bytes(tmp_path) == limit


QUOTA = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}


@pytest.mark.parametrize(
    ("files", "environ", "threads", "level", "words"),
    [
        ({}, {}, (0, 0), OK, "4 threads within an op; this process may use 4 cores"),
        ({}, {}, (4, 2), OK, "4 threads within an op, 2 ops at once"),
        ({}, {}, (2, 0), NOTE, "some stay idle"),
        ({}, {"TF_NUM_INTRAOP_THREADS": "1"}, (0, 0), NOTE, "1 threads"),
        # What a program sets wins over the environment; nonsense is ignored.
        ({}, {"TF_NUM_INTRAOP_THREADS": "1"}, (4, 0), OK, "4 threads"),
        ({}, {"TF_NUM_INTRAOP_THREADS": "all"}, (0, 0), OK, "4 threads"),
        ({}, {}, (16, 0), WARNING, "TF_NUM_INTRAOP_THREADS=4"),
        (QUOTA, {}, (0, 0), WARNING, "TF_NUM_INTRAOP_THREADS=2"),
        (QUOTA, {}, (2, 0), OK, "the time of 1.5"),
    ],
)
def test_threads(surroundings, files, environ, threads, level, words):
    here = surroundings(files, environ, threads=threads)
    assert_finding(only(check_threads(here)), level, words)


def test_openmp_s_threads(surroundings):
    _, found = check_threads(surroundings(environ={"OMP_NUM_THREADS": "1"}))
    assert_finding(found, NOTE, "OMP_NUM_THREADS=1", "TF_NUM_INTRAOP_THREADS")


@pytest.mark.parametrize(("load", "level"), [(0.0, OK), (9.0, OK), (9.1, WARNING)])
def test_a_busy_machine(surroundings, load, level):
    here = dataclasses.replace(surroundings(), load=lambda: load)
    assert_finding(only(check_load(here)), level, f"{load} threads wanted", "on 8 cores")


def test_a_machine_that_does_not_tell_its_load(surroundings):
    here = dataclasses.replace(surroundings(), load=lambda: None)
    assert list(check_load(here)) == []


# GPUs.


def smi(version="550.54.15"):
    return lambda words: SMI.format(version)


def test_no_gpu(surroundings):
    assert_finding(only(check_gpus(surroundings())), OK, "no NVIDIA GPU")


def test_a_gpu(surroundings):
    gpu, driver = check_gpus(surroundings(run=smi(), gpus=(H100,), build=CUDA))
    assert_finding(
        gpu, OK, "NVIDIA H100, 79.6 GiB, compute capability 9.0: Tensor Cores for bfloat16"
    )
    assert_finding(driver, OK, "550.54.15")


@pytest.mark.parametrize("capability", [(6, 1), None])
def test_a_gpu_without_tensor_cores(surroundings, capability):
    here = surroundings(gpus=(Gpu("Old", capability),), build=CUDA)
    assert_finding(only(check_gpus(here)), NOTE, "no Tensor Cores", "float32")


@pytest.mark.parametrize(
    ("cuda", "version", "level"),
    [
        ("12.5.1", "525.60.13", OK),
        ("12.5.1", "515.43.04", PROBLEM),
        ("13.0.0", "570.1", PROBLEM),
        ("11.8", "470.1", OK),
        # A CUDA of the future, of which no least driver is known.
        ("19.0", "570.1", OK),
    ],
)
def test_the_driver_against_cuda(surroundings, cuda, version, level):
    here = surroundings(run=smi(version), gpus=(H100,), build=CUDA | {"cuda_version": cuda})
    assert_finding(list(check_gpus(here))[1], level, version)


LIBRARIES = FakePackages(
    {"tensorflow": "2.21.0", "nvidia-cublas-cu12": "12.6.0"},
    {
        "tensorflow": [
            "numpy>=1.26",
            'nvidia-cublas-cu12<13.0,>=12.5; extra == "and-cuda"',
            'nvidia-cudnn-cu12<10.0,>=9.3; extra == "and-cuda"',
        ]
    },
)


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ({}, PROBLEM, "built without CUDA; pip install 'tfaccel[gpu]'"),
        ({"build": CUDA}, PROBLEM, "TF_CPP_MIN_LOG_LEVEL=0"),
        ({"build": CUDA, "packages": LIBRARIES}, PROBLEM, "nvidia-cudnn-cu12; not installed"),
        ({"environ": {"CUDA_VISIBLE_DEVICES": ""}}, NOTE, "hidden by CUDA_VISIBLE_DEVICES=''"),
        ({"environ": {"CUDA_VISIBLE_DEVICES": "-1"}}, NOTE, "hidden by; Unset"),
        ({"environ": {"CUDA_VISIBLE_DEVICES": "-1,0"}}, NOTE, "hidden by"),
        ({"environ": {"CUDA_VISIBLE_DEVICES": "0"}}, PROBLEM, "built without CUDA"),
    ],
)
def test_a_gpu_that_tensorflow_does_not_see(surroundings, change, level, words):
    _, found = check_gpus(surroundings(**{"run": smi()} | change))
    assert_finding(found, level, "NVIDIA H100", *words.split("; "))


def test_a_gpu_that_the_container_has_not(surroundings):
    files = {"proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA L4\n"}
    _, found = check_gpus(surroundings(files))
    assert_finding(found, WARNING, "NVIDIA L4", "docker run --gpus all")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        ({}, "without CUDA"),
        ({"is_cuda_build": False}, "without CUDA"),
        (CUDA, "CUDA 12.5.1 and cuDNN 9"),
        ({"is_cuda_build": False, "is_rocm_build": True}, "ROCm"),
    ],
)
def test_what_tensorflow_is_built_for(surroundings, build, words):
    assert_finding(only(check_cuda(surroundings(build=build))), OK, words)


def test_cuda_libraries_of_another_version(surroundings):
    packages = FakePackages(
        LIBRARIES.versions | {"nvidia-cudnn-cu12": "9.1.0"}, LIBRARIES.requirements
    )
    _, found = check_cuda(surroundings(packages=packages, build=CUDA, gpus=(H100,)))
    assert_finding(found, WARNING, "9.1.0 is installed", "pip install --upgrade")
    # Without a GPU they aren't used; and those that aren't installed came another way.
    assert len(list(check_cuda(surroundings(packages=packages, build=CUDA)))) == 1
    here = surroundings(packages=LIBRARIES, build=CUDA, gpus=(H100,))
    assert len(list(check_cuda(here))) == 1


@pytest.mark.parametrize(
    ("variable", "grows", "level"),
    [
        (None, False, NOTE),
        (None, True, OK),
        ("true", False, OK),
        ("false", True, NOTE),
        ("nonsense", False, NOTE),
    ],
)
def test_memory_growth(surroundings, variable, grows, level):
    environ = {} if variable is None else {"TF_FORCE_GPU_ALLOW_GROWTH": variable}
    here = surroundings(environ=environ, gpus=(H100,), memory_grows=grows)
    assert_finding(only(check_memory_growth(here)), level)


def test_memory_growth_without_a_gpu(surroundings):
    assert list(check_memory_growth(surroundings())) == []


# The installation.


def test_versions(surroundings):
    found = only(check_versions(surroundings()))
    assert_finding(found, OK, "Python 3.12.1, TensorFlow 2.21.0, Keras 3.15.1, NumPy 2.4.6")


@pytest.mark.parametrize(
    ("name", "version", "words"),
    [
        ("Python", "3.9.18", "Python 3.10 or newer"),
        ("TensorFlow", "2.15.1", "pip install --upgrade 'tensorflow>=2.16'"),
        ("TensorFlow", "2.9.0", "tensorflow>=2.16"),
        ("Keras", "3.9.2", "pip install --upgrade 'keras>=3.10'"),
    ],
)
def test_versions_that_are_too_old(surroundings, name, version, words):
    found = only(check_versions(surroundings(versions={name: version})))
    assert_finding(found, PROBLEM, f"{name} {version}", words)


def test_a_nightly_tensorflow_is_new_enough(surroundings):
    here = surroundings(versions={"TensorFlow": "2.22.0-dev20260101"})
    assert_finding(only(check_versions(here)), OK)


REQUIREMENTS = {
    "tensorflow-cpu": [
        "numpy<3,>=1.26",
        "h5py>=3.11",
        'requests; python_version < "3"',
        'nvidia-cudnn-cu12>=9.3; extra == "and-cuda"',
    ],
    "keras": ["numpy"],
}


def test_packages_that_fit(surroundings):
    packages = FakePackages(
        {"tensorflow-cpu": "2.21.0", "numpy": "2.0.1", "h5py": "3.12.0rc1"}, REQUIREMENTS
    )
    found = only(check_packages(surroundings(packages=packages)))
    assert_finding(found, OK, "tensorflow-cpu 2.21.0")


def test_packages_that_do_not_fit(surroundings):
    packages = FakePackages({"tensorflow-cpu": "2.21.0", "numpy": "1.24.0"}, REQUIREMENTS)
    old, absent = check_packages(surroundings(packages=packages))
    assert_finding(old, WARNING, "numpy", "1.24.0 is installed")
    assert_finding(absent, WARNING, "h5py>=3.11, which is not installed")


def test_the_requirements_of_an_extra_are_its_own():
    packages = FakePackages({}, REQUIREMENTS)
    assert len(unmet(packages, "tensorflow-cpu")) == 2
    (phrase,) = unmet(packages, "tensorflow-cpu", "and-cuda")
    assert "nvidia-cudnn-cu12" in phrase
    assert unmet(packages, "tensorflow-cpu", "and-cuda", missing=False) == ()


@pytest.mark.parametrize(("other", "level"), [("2.21.0", WARNING), ("2.20.0", PROBLEM)])
def test_two_tensorflows_over_each_other(surroundings, other, level):
    packages = FakePackages({"tensorflow": "2.21.0", "tensorflow-cpu": other})
    found = only(check_packages(surroundings(packages=packages)))
    assert_finding(found, level, "over each other", "pip uninstall tensorflow tensorflow-cpu")


def test_a_tensorflow_that_pip_does_not_know(surroundings):
    here = surroundings(packages=FakePackages({"numpy": "2.0.1"}))
    assert_finding(only(check_packages(here)), NOTE, "pip does not know")


def test_what_is_installed_here():
    packages = Packages()
    assert re.match(r"\d+\.\d+", packages.version("keras"))
    assert any("numpy" in text for text in packages.requires("keras"))
    assert packages.version("no-such-package-anywhere") is None
    assert list(packages.requires("no-such-package-anywhere")) == []


@pytest.mark.parametrize(
    ("environ", "config", "level", "words"),
    [
        ({"TF_USE_LEGACY_KERAS": "1"}, {}, WARNING, "Keras 2"),
        ({}, {"floatx": "float64"}, WARNING, "float64"),
        ({}, {"image_data_format": "channels_first"}, WARNING, "channels_last"),
    ],
)
def test_settings_of_keras_that_hinder(surroundings, environ, config, level, words):
    usual, found = check_keras(surroundings(environ=environ, keras_config=config))
    assert usual.level is OK
    assert_finding(found, level, words)


def test_settings_of_keras(surroundings):
    assert_finding(only(check_keras(surroundings())), OK)
    on_gpu = surroundings(gpus=(H100,), keras_config={"image_data_format": "channels_first"})
    assert_finding(only(check_keras(on_gpu)), OK)
    found = only(check_keras(surroundings(keras_config={"backend": "jax"})))
    assert_finding(found, PROBLEM, "KERAS_BACKEND=tensorflow")


@pytest.mark.parametrize(
    ("is_on", "environ", "level", "words"),
    [
        (True, {}, OK, "on"),
        (False, {}, NOTE, "Try TF_ENABLE_ONEDNN_OPTS=1"),
        (False, {"TF_ENABLE_ONEDNN_OPTS": "0"}, WARNING, "turned off by TF_ENABLE_ONEDNN_OPTS=0"),
        (None, {}, NOTE, "doesn't tell"),
    ],
)
def test_onednn(surroundings, monkeypatch, is_on, environ, level, words):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    found = only(check_onednn(surroundings(environ=environ, onednn=is_on)))
    assert_finding(found, level, words)


def test_onednn_on_a_mac(surroundings, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert_finding(only(check_onednn(surroundings(onednn=False))), OK, "macOS")


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_limits_on_onednn(surroundings, name):
    _, found = check_onednn(surroundings(environ={name: "AVX2"}))
    assert_finding(found, WARNING, f"Unset {name}")
    assert len(list(check_onednn(surroundings(environ={name: "all"})))) == 1


@pytest.fixture
def _asked_anew():
    tensorflow_private.onednn_is_on.cache_clear()
    yield
    tensorflow_private.onednn_is_on.cache_clear()


@pytest.mark.usefixtures("_asked_anew")
@pytest.mark.parametrize(("told", "is_on"), [(1, True), (0, False), (None, None)])
def test_tensorflow_says_whether_onednn_is_on(told, is_on, monkeypatch):
    def module(name):
        if told is None:
            raise ImportError(name)
        return types.SimpleNamespace(IsMklEnabled=lambda: told)

    monkeypatch.setattr("importlib.import_module", module)
    assert TensorFlow().onednn() is is_on


@pytest.mark.usefixtures("_asked_anew")
def test_this_tensorflow_says_whether_onednn_is_on():
    assert TensorFlow().onednn() is not None


def test_extras(surroundings):
    everything = {"matplotlib": "3.10", "jinja2": "3", "openvino": "2026.1"}
    everything |= {"onnxruntime": "1.24", "pyopencl": "2026.1"}
    everything |= {"tensorboard": "2", "scikit-learn": "1.9"}
    found = only(check_extras(surroundings(packages=FakePackages(everything))))
    listed = ", ".join(f"{name} {version}" for name, version in everything.items())
    assert_finding(found, OK, listed)
    some, absent = check_extras(surroundings(packages=FakePackages({"tensorboard": "2.20"})))
    assert_finding(some, OK, "tensorboard 2.20")
    assert_finding(
        absent,
        *(NOTE, "matplotlib (", "jinja2 ("),
        "install 'tfaccel[report,openvino,onnx,opencl,examples]'",
    )


def test_opencl(surroundings):
    """Its devices where pyopencl is installed, what to do where it has none, else nothing."""
    assert not list(check_opencl(surroundings()))
    installed = FakePackages({"pyopencl": "2026.1"})
    here = surroundings(packages=installed)
    facts = ("Iris Xe", "GPU", 96, 12 * GIB, True, "Intel OpenCL", "3.0 23.43", None)
    some = dataclasses.replace(here, opencl_devices=lambda: (OpenCLDevice(*facts),))
    said = ("Iris Xe: GPU, 96 compute units, 12", "shared with the CPU; Intel OpenCL, 3.0")
    assert_finding(only(check_opencl(some)), OK, *said)

    def none():
        raise RuntimeError("no platform: install one")

    absent = only(check_opencl(dataclasses.replace(here, opencl_devices=none)))
    assert_finding(absent, NOTE, "no device", "install one")


def test_the_extras_are_those_of_the_project():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for extra, package, _ in EXTRAS:
        required = setup["options.extras_require"][extra].split()
        assert package in [Requirement(line).name for line in required]


def test_the_plan_cache(surroundings, tmp_path):
    here = surroundings()
    assert_finding(only(check_cache(here)), OK, str(tmp_path / "plans"), "empty")
    assert not (tmp_path / "plans").exists(), "doctor changes nothing"
    write(tmp_path, "plans/a.json", "{}")
    assert_finding(only(check_cache(here)), OK, "with 1 plans")


def test_a_plan_cache_that_can_t_be_written(surroundings, tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert_finding(only(check_cache(surroundings())), WARNING, "TFACCEL_CACHE_DIR")


def test_a_file_in_the_plan_cache_s_place(surroundings, tmp_path):
    write(tmp_path, "plans", "in the way")
    assert_finding(only(check_cache(surroundings())), WARNING, "is a file")


# Products in 16 bits.


def test_products_that_are_right():
    for label, product in products.PRODUCTS:
        assert products.tried(label, product, "/device:CPU:0", "bfloat16") is None


def changed(change, in_dtype):
    """A matrix product that goes wrong in one dtype."""

    def product(left, right):
        result = tf.matmul(left, right)
        return change(result) if left.dtype == in_dtype else result

    return product


def fails(_):
    raise tf.errors.UnimplementedError(None, None, "no kernel\nand more lines")


@pytest.mark.parametrize(
    ("change", "in_dtype", "level", "words"),
    [
        (lambda x: x * 1.25, tf.bfloat16, PROBLEM, "in bfloat16 are off by 2"),
        (lambda x: x * math.nan, tf.bfloat16, PROBLEM, "are off by nan"),
        (fails, tf.bfloat16, WARNING, "fail in bfloat16: UnimplementedError: no kernel"),
        (fails, tf.float32, PROBLEM, "fail in float32: UnimplementedError: no kernel"),
    ],
)
def test_products_that_are_wrong(change, in_dtype, level, words):
    product = changed(change, in_dtype)
    found = products.tried("matrix products", product, "/device:CPU:0", "bfloat16")
    assert_finding(found, level, words)
    assert "more lines" not in found.found


def test_sums_in_16_bits_are_seen(rng):
    """The bound is tight enough to tell sums in bfloat16 from sums in float32."""

    def summed_in_16_bits(left, right):
        total = tf.zeros((left.shape[0], right.shape[1]), left.dtype)
        for k in range(left.shape[1]):
            total += left[:, k : k + 1] * right[k : k + 1]
        return total

    found = products.tried("matrix products", summed_in_16_bits, "/device:CPU:0", "bfloat16")
    assert_finding(found, PROBLEM, "more than its rounding explains")


class ScriptedClock:
    """A clock in which each dtype's products take as long as a test says."""

    def __init__(self, seconds):
        self.seconds, self.now = seconds, 0.0

    def __call__(self):
        return self.now

    def matmul(self, left, right):
        self.now += self.seconds[left.dtype.name]
        return left


CHIP = Device("CPU", "chip", flags=frozenset({"avx512_bf16"}))
OLD_CHIP = Device("CPU", "old chip")
GPU = Device("GPU", "gpu", compute_capability=(9, 0))


@pytest.mark.parametrize(
    ("device", "ratio", "level", "words"),
    [
        (
            CHIP,
            2.0,
            OK,
            "bfloat16 products are right, and run at 2.00x [2.00-2.00] the speed of float32",
        ),
        (CHIP, 0.25, WARNING, "though the chip has instructions; TF_ENABLE_ONEDNN_OPTS=1"),
        (CHIP, 1.0, NOTE, "no difference to be seen"),
        (GPU, 0.5, WARNING, "though the chip has instructions; Update TensorFlow and the driver"),
        (OLD_CHIP, 0.25, NOTE, "at 0.25x; the chip has no instructions for them; float32"),
        (OLD_CHIP, 1.5, OK, "at 1.50x"),
    ],
)
def test_the_speed_of_products(surroundings, monkeypatch, device, ratio, level, words):
    clock = ScriptedClock({"float32": 2.0**-20, "bfloat16": 2.0**-20 / ratio})
    monkeypatch.setattr(tf, "matmul", clock.matmul)
    here = dataclasses.replace(surroundings(), clock=clock)
    found = products.timed_products(device, "/device:CPU:0", "bfloat16", here)
    assert_finding(found, level, *words.split("; "))
    assert found.area == "products on CPU:0"
    # 2 * 8**3 floating-point operations in 2**-20 s.
    assert "against 1 GFLOP/s" in found.found


def test_products_that_take_long_are_timed_three_times(surroundings, monkeypatch):
    clock = ScriptedClock({"float32": 1.0, "bfloat16": 100.0})
    monkeypatch.setattr(tf, "matmul", clock.matmul)
    here = dataclasses.replace(surroundings(), clock=clock)
    products.timed_products(OLD_CHIP, "/device:CPU:0", "bfloat16", here)
    assert clock.now == pytest.approx(4 * 101.0)


def test_the_rates_are_each_dtype_s_own():
    found = products.verdict(CHIP, "area", "bfloat16", Speedup(2.0, 1.9, 2.1, 6), (4e11, 8e11))
    assert "(800 against 400 GFLOP/s)" in found.found


def test_products_on_this_machine(surroundings):
    found = only(products.check_products(surroundings()))
    assert found.area == "products on CPU:0"
    assert "bfloat16 products are right" in found.found


@pytest.mark.parametrize(
    ("capability", "dtype"), [((9, 0), "bfloat16"), ((7, 5), "float16"), ((6, 1), "bfloat16")]
)
def test_each_device_is_tried_in_its_dtype(surroundings, monkeypatch, capability, dtype):
    asked = []
    monkeypatch.setattr(products, "tried", lambda *args: asked.append(args))
    finding = Finding("area", "found")
    monkeypatch.setattr(products, "timed_products", lambda *args: finding)
    here = surroundings(gpus=(Gpu("x", capability),), devices=("/device:CPU:0", "/device:GPU:0"))
    assert list(products.check_products(here)) == [finding, finding]
    assert {args[2:] for args in asked} == {
        ("/device:CPU:0", "bfloat16"),
        ("/device:GPU:0", dtype),
    }


def test_what_fails_is_not_timed(surroundings, monkeypatch):
    wrong = Finding("area", "found", PROBLEM, "remedy")
    monkeypatch.setattr(products, "tried", lambda *args: wrong)
    assert list(products.check_products(surroundings())) == [wrong, wrong]


def test_gpu_memory_is_never_taken_whole(surroundings):
    environ = {"TF_FORCE_GPU_ALLOW_GROWTH": "false"}
    here = surroundings(environ=environ, gpus=(H100,))
    here.tensorflow.devices = functools.partial(pytest.fail, "the GPU was started")
    assert_finding(only(products.check_products(here)), NOTE, "not tried")


def test_devices_are_started_with_growing_memory(monkeypatch):
    grown = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu 0", "gpu 1"])
    experimental = tf.config.experimental
    monkeypatch.setattr(experimental, "set_memory_growth", lambda *args: grown.append(args))
    assert any(name.endswith("CPU:0") for name in TensorFlow().devices())
    assert grown == [("gpu 0", True), ("gpu 1", True)]

    def started(gpu, enable):
        raise RuntimeError("Physical devices cannot be modified after being initialized")

    monkeypatch.setattr(experimental, "set_memory_growth", started)
    assert TensorFlow().devices()


# All together.


def test_a_healthy_machine(surroundings):
    diagnosis = command.diagnose(surroundings(), command.CHECKS[:-1])
    assert {f.level for f in diagnosis.findings if f.area != "extras"} == {OK}
    assert diagnosis.machine["cpu"] == "Some Chip 9000"
    assert diagnosis.exit_code == 0


def test_a_check_that_fails_is_a_finding(surroundings):
    def breaks(here):
        yield Finding("area", "first")
        raise OSError("the disk\nis gone")

    def works(here):
        yield Finding("area", "last")

    diagnosis = command.diagnose(surroundings(), (("disk", breaks), ("area", works)))
    first, failed, last = diagnosis.findings
    assert (first.found, last.found) == ("first", "last")
    assert_finding(failed, WARNING, "could not be looked at: OSError: the disk is gone")
    assert failed.area == "disk"


def test_this_machine():
    """Nothing breaks off here, wherever here is; products are timed small, to be quick."""
    here = dataclasses.replace(Surroundings(), sizes={"CPU": 16, "GPU": 16})
    diagnosis = command.diagnose(here)
    assert not [f for f in diagnosis.findings if "could not be looked at" in f.found]
    areas = {finding.area for finding in diagnosis.findings}
    assert areas >= {"CPU", "memory", "disk", "threads", "GPU", "CUDA", "versions", "oneDNN"}


@pytest.fixture
def quick(monkeypatch, surroundings):
    """`tfaccel doctor` in surroundings of a test's choice."""

    def choose(*args, **said):
        monkeypatch.setattr(command, "Surroundings", lambda: surroundings(*args, **said))

    choose()
    return choose


def test_the_command_as_json(capsys, quick):
    assert main.main(["doctor", "--format=json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["machine"]["cpu"] == "Some Chip 9000"
    assert {"area", "level", "found", "remedy"} == set(data["findings"][0])


def test_the_command_as_markdown(capsys, quick):
    assert main.main(["doctor", "--format=markdown"]) == 0
    assert "| CPU | ok | Some Chip 9000" in capsys.readouterr().out


def test_the_command_as_a_table(capsys, quick):
    assert main.main(["doctor"]) == 0
    assert "Some Chip 9000" in capsys.readouterr().out


def test_the_command_exits_with_1_on_a_problem(capsys, quick):
    quick(versions={"Keras": "3.9.0"})
    assert main.main(["doctor"]) == 1
    assert "keras>=3.10" in capsys.readouterr().out


def test_the_command_takes_no_arguments(capsys, quick):
    assert main.main(["doctor", "model.keras"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "unrecognized arguments: model.keras" in err


def test_nothing_is_left_behind(surroundings, tmp_path):
    here = surroundings()
    before = sorted(tmp_path.rglob("*")), np.random.get_state()[1].tolist()
    policy = keras.config.dtype_policy()
    command.diagnose(here)
    assert (sorted(tmp_path.rglob("*")), np.random.get_state()[1].tolist()) == before
    assert keras.config.dtype_policy() is policy
