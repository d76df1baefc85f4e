"""Surroundings that doctor looks at, as a test has them."""

import dataclasses

from tfaccel.cli.doctor._finding import Level
from tfaccel.cli.doctor._surroundings import Packages, TensorFlow
from tfaccel.system.machine import Gpu

OK, NOTE, WARNING, PROBLEM = Level
GIB = 2**30
H100 = Gpu("NVIDIA H100", (9, 0))


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
