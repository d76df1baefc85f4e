"""What doctor says of GPUs, CUDA and the growth of their memory."""

import pytest
from machines import H100, NOTE, OK, PROBLEM, WARNING, FakePackages, assert_finding, only

from tfaccel.cli.doctor._gpu import (
    check_cuda,
    check_gpus,
    check_memory_growth,
)
from tfaccel.system.machine import Gpu

SMI = "NVIDIA H100, 81559, {}\n"


CUDA = {"is_cuda_build": True, "cuda_version": "12.5.1", "cudnn_version": "9"}


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
