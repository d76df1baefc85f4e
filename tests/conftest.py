"""How tests are run. Nothing here needs a network or a GPU."""

import os

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Processes of tests share the cores. On tensors as small as theirs threads only wait.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

# It takes minutes. Begun last, it would have one process wait for the other.
LONGEST = ("test_multi_worker.py",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_configure(config: pytest.Config) -> None:
    # The process that hands tests to others runs none, and waits for no TensorFlow.
    if config.getoption("dist", "no") == "no":
        config.pluginmanager.import_plugin("common_fixtures")
