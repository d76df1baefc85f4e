"""What a training that is too short for anything loads of tfaccel: what decides that, no more."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "tfaccel"
# What tries, races, runs plans, reports at length and profiles.
HEAVY = {
    f"tfaccel.{name}"
    for name in (
        "autotune.comparison",
        "autotune.expected",
        "autotune.priors",
        "autotune.search",
        "autotune.training_trials",
        "autotune.trial_runner",
        "autotune.warm_start",
        "batch_size",
        "callbacks.profiler",
        "data",
        "distribute",
        "explain",
        "inference",
        "launch.every_batch",
        "launch.sweep",
        "launch.workers.backup",
        "loops",
        "ops",
        "passes",
        "profiling.meter",
        "profiling.profile",
        "training.choose",
        "training.guarded_step",
        "training.live_gain",
        "training.live_race",
        "training.nan_guard",
        "training.validation",
    )
}
PROGRAM = """
import sys

import keras
import numpy as np


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(1)

    def call(self, inputs):
        return self.inner(inputs)


x, y = np.ones((40, 4)), np.ones((40, 1))
functional = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(1)])
for model in (functional, Subclassed()):
    model.compile("sgd", "mse")
    for _ in range(2):
        model.fit(x, y, batch_size=8, epochs=2, validation_data=(x, y), verbose=0)
print(*sorted(name for name in sys.modules if name.startswith("tfaccel")))
"""


def test_a_short_training_loads_what_decides_and_no_more(tmp_path):
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel", "run", str(script)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    loaded = {*done.stdout.split()}
    assert "tfaccel.training.course" in loaded and "too short" in done.stderr
    assert not loaded & HEAVY


def modules_for_later(path):
    """The modules that a file names for later, and those that checkers see there."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    later = {c.args[0].value for c in calls if getattr(c.func, "id", "") == "later"}
    checked = {
        f"{node.module}.{alias.name}"
        for block in tree.body
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    return later, checked


USING = [path for path in sorted(PACKAGE.rglob("*.py")) if "import later\n" in path.read_text()]


@pytest.mark.parametrize("path", USING, ids=lambda path: path.stem)
def test_checkers_see_what_is_loaded_later(path):
    later, checked = modules_for_later(path)
    assert later and later <= checked


@pytest.mark.parametrize("path", USING, ids=lambda path: path.stem)
def test_what_is_for_later_is_named_at_the_top_alone(path):
    uses = re.findall(r"^( *)\w+ = later\(", path.read_text(), re.MULTILINE)
    assert {*uses} == {"    "}
