"""OpenVINO's GPU plug-in as an engine, by a core that says it has one."""

import dataclasses
import importlib.machinery
import sys
import types
import typing

import inference_models
import numpy as np
import pytest
from inference_models import accelerate, assert_alike, numbers
from test_engines import workload_of
from test_saved_predictions import dense_model

import tfaccel
from tfaccel.core.unsupported import Refusal
from tfaccel.inference.engines import OpenVINO, openvino
from tfaccel.system.device import Device

winning = inference_models.winning
ON_GPU = OpenVINO(device="GPU")


class FakeCore:
    """Finds the devices that a test names, and has a model run by the real core's CPU."""

    devices: typing.ClassVar = ("CPU",)
    real: typing.ClassVar = None
    compiled: typing.ClassVar = []  # the devices

    @property
    def available_devices(self):
        return list(self.devices)

    def get_property(self, device, name):
        assert (device, name) == ("GPU", "FULL_DEVICE_NAME")
        if "GPU.broken" in self.devices:
            raise RuntimeError("the driver is broken")
        return "Intel Iris Xe"

    def compile_model(self, model, device, config):
        FakeCore.compiled.append(device)
        return self.real().compile_model(model, "CPU", config)

    def read_model(self, path):
        return self.real().read_model(path)


@pytest.fixture
def core(monkeypatch):
    """Has OpenVINO's core be the fake one, whose devices may be set."""

    def found(*devices):
        monkeypatch.setattr(FakeCore, "devices", devices)
        monkeypatch.setattr(FakeCore, "compiled", [])
        openvino.found_devices.cache_clear()

    real = sys.modules.get("openvino")
    try:
        import openvino as real
    except ImportError:
        module = types.ModuleType("openvino")
        module.__spec__ = importlib.machinery.ModuleSpec("openvino", None)
        monkeypatch.setitem(sys.modules, "openvino", module)
    else:
        monkeypatch.setattr(FakeCore, "real", real.Core)
    monkeypatch.setattr(sys.modules["openvino"], "Core", FakeCore, raising=False)
    yield found
    monkeypatch.undo()
    openvino.found_devices.cache_clear()


def workload(**facts):
    device = Device("CPU", "some chip", cores=4)
    return dataclasses.replace(workload_of(dense_model(), numbers(4)), device=device, **facts)


@pytest.mark.parametrize("devices", [("CPU", "GPU"), ("CPU", "GPU.0", "GPU.1")])
def test_a_gpu_is_tried_beside_the_cpu(devices, core):
    core(*devices)
    found = OpenVINO().variants(workload(optimize="throughput"))
    assert [(one.device, one.hint) for one in found] == [
        *(("CPU", "latency"), ("CPU", "throughput"), ("GPU", "latency"), ("GPU", "throughput"))
    ]
    assert ON_GPU.unsupported(workload()) is None
    assert ON_GPU.cache_key(workload()) == (OpenVINO.version(), "Intel Iris Xe")


@pytest.mark.parametrize("devices", [("CPU",), ("CPU", "NPU"), ("CPU", "GPU.broken")])
def test_without_a_gpu_nothing_is_tried_there(devices, core):
    core(*devices)
    assert {one.device for one in OpenVINO().variants(workload())} == {"CPU"}
    assert ON_GPU.unsupported(workload()).kind is Refusal.DEVICE
    assert OpenVINO().unsupported(workload()) is None
    assert OpenVINO().cache_key(workload()) == OpenVINO.version()


def test_the_plan_survives_json_and_says_where():
    plan = tfaccel.Plan((ON_GPU,))
    assert tfaccel.Plan.from_json(plan.to_json()) == plan
    assert "GPU" in str(plan) and "CPU" not in str(tfaccel.Plan((OpenVINO(),)))
    with pytest.raises(ValueError, match="`device` must be one of CPU, GPU"):
        OpenVINO(device="NPU")
    with pytest.raises(ValueError, match="`precision` must be one of float32, int8 on a GPU"):
        OpenVINO(device="GPU", precision="bfloat16")


def test_predictions_are_made_there(core, winning, tmp_path):
    """And by the CPU, where what was saved is loaded on a machine without a GPU."""
    pytest.importorskip("openvino.frontend", reason="the extra openvino is not installed")
    core("CPU", "GPU")
    model, x = dense_model(), numbers(4)
    fast = accelerate(model, x, [dataclasses.replace(ON_GPU, hint="throughput")])
    assert fast.plan.names == ("openvino",), fast.report.reasons()
    assert set(FakeCore.compiled) == {"GPU"}
    expected = model.predict(x, verbose=0)
    for size in (len(x), 5):
        found = fast.predict(x, batch_size=size, verbose=0)
        assert_alike(expected, found, 1e-4, 1e-4)
    fast.save(tmp_path / "saved")
    core("CPU")
    found = tfaccel.load(tmp_path / "saved").predict(x, verbose=0)
    assert_alike(np.asarray(expected), found, 1e-4, 1e-4)
    assert set(FakeCore.compiled) == {"CPU"}
