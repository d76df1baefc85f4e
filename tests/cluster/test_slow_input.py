"""ProfilerCallback tells which of two real workers waits for its input."""

import json

import pytest
from workers import launch

pytestmark = pytest.mark.slow


def test_the_worker_that_waits_is_named_on_all(tmp_path):
    launch.run(launch.tf_config(2), launch.HERE / "slow_input.py", tmp_path)
    found = [json.loads((tmp_path / f"result-{i}.json").read_text()) for i in range(2)]
    for summary in found:
        quick, slow = summary["worker_input_wait_shares"]
        assert slow > 0.2
        assert quick < slow / 2
        assert summary["worker_input_advice"].startswith("Worker 1 waits longest")
        assert "auto_shard_policy" in summary["worker_input_advice"]
    assert found[0]["worker_input_advice"] == found[1]["worker_input_advice"]
