"""What doctor says of what is installed and set."""

import configparser
import dataclasses
import pathlib
import re
import types

import pytest
from machines import (
    GIB,
    H100,
    NOTE,
    OK,
    PROBLEM,
    WARNING,
    FakePackages,
    assert_finding,
    only,
    write,
)
from packaging.requirements import Requirement

from tfaccel.cli.doctor._gpu import (
    check_opencl,
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
from tfaccel.cli.doctor._surroundings import Packages, TensorFlow
from tfaccel.compat import tensorflow_private
from tfaccel.ops.kernels import OpenCLDevice

ROOT = pathlib.Path(__file__).parents[2]


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
