"""What keeps XLA from the steps of several workers: what docs/distributed.md says, and no more."""

import json

import pytest
from workers import launch

pytestmark = pytest.mark.slow


def test_the_sums_of_gradients_are_what_xla_cannot_compile(tmp_path):
    launch.run(launch.tf_config(2), launch.HERE / "xla_step.py", tmp_path)
    for index in range(2):
        found = json.loads((tmp_path / f"result-{index}.json").read_text())
        assert found["gradients"] == ""
        assert "Collectives are not yet implemented for CPU devices" in found["whole"]
        assert "collective operations by which workers sum" in found["asked"]
