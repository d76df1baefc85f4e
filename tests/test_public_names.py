"""The public names: loaded when they are asked for, and the same for a type checker."""

import ast
import pathlib
import subprocess
import sys

import pytest

import tfaccel

SOURCE = pathlib.Path(tfaccel.__file__)


def named_for_checkers():
    """What the block for type checkers imports, and from where."""
    tree = ast.parse(SOURCE.read_text(encoding="utf-8"))
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    for statement in block.body:
        for alias in statement.names:
            assert alias.name == alias.asname
            # A module is imported from the package that it is in.
            inside = f"tfaccel.{alias.name}" if statement.module == "tfaccel" else None
            yield alias.name, inside or statement.module


def named_for_python():
    """What is looked up when it is asked for, and where."""
    for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "_HOMES":
            return ast.literal_eval(node.value)


def test_both_lists_are_the_same():
    assert dict(named_for_checkers()) == named_for_python()


def test_every_name_is_there():
    assert set(tfaccel.__all__) <= set(dir(tfaccel))
    for name in tfaccel.__all__:
        assert getattr(tfaccel, name) is not None
    with pytest.raises(AttributeError, match="module 'tfaccel' has no attribute 'nothing'"):
        tfaccel.nothing  # noqa: B018


def test_importing_tfaccel_loads_neither_tensorflow_nor_keras():
    code = "import sys, tfaccel; print({'tensorflow', 'keras', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_a_plan_is_read_before_anything_else_is_asked_for_and_a_folder_without_an_import():
    """Its passes are known by their names, wherever the first public name is defined."""
    text = '{"schema": 1, "passes": [{"name": "fused_norm"}]}'
    # Nor does a fit wait for the profiler, or for what makes pages and exports.
    code = f"""
import sys, tfaccel
print(tfaccel.Plan.from_json({text!r}))
tfaccel.AccelCallback
print({{"tfaccel.callbacks.profiler", "tfaccel.cli", "jinja2", "psutil"}} & set(sys.modules))
print("tfaccel.launch" in sys.modules, tfaccel.launch.__name__, hasattr(tfaccel, "_launch"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "fused_norm\nset()\nFalse tfaccel.launch False\n"
