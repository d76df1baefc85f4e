"""Two, three and four workers train as one process does, under every pass that serves them."""

import json

import numpy as np
import pytest
from workers import launch

pytestmark = pytest.mark.slow

SAME = 1e-4
# In 16 bits each share of a batch rounds sums of its own.
TOLERANCES = {"mixed_precision": 2e-2, "float16": 2e-2}


def trained(out, count):
    """What each of so many workers found."""
    out.mkdir()
    launch.run(launch.tf_config(count), launch.HERE / "every_pass.py", out, timeout_seconds=900)
    return [json.loads((out / f"result-passes-{i}.json").read_text()) for i in range(count)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same by a cluster of one process."""
    return trained(tmp_path_factory.mktemp("one") / "out", 1)[0]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_losses_are_those_of_one_process(tmp_path, one, count):
    found = trained(tmp_path / "out", count)
    for worker in found:
        assert worker["agreement"] == {"failed": True, "next": 0}
    for name in one.keys() - {"agreement", "shares"}:
        for worker in found:
            # Statistics of shares are no other process's: those of the same workers without it.
            reference = worker["shares"] if name == "fused_norm" else one[name]
            assert worker[name]["plan"] == one[name]["plan"], name
            assert_same_losses(worker[name]["history"], reference["history"], name)
        for other in found[1:]:
            assert other[name]["weights"] == found[0][name]["weights"], name


def assert_same_losses(history, reference, name):
    for metric, values in history.items():
        tolerance = TOLERANCES.get(name, SAME)
        np.testing.assert_allclose(values, reference[metric], rtol=tolerance, err_msg=name)
