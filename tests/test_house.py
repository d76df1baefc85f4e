"""The tree is where one expects things: see "The house" in CONTRIBUTING.

Which folder may import which is checked by `make check` (import-linter, pyproject.toml).
"""

import ast
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "tfaccel"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_FILES = 20
MOST_LINES = 350
MOST_LINES_OF_A_FUNCTION = 60
# What only tfaccel/compat may name: modules that are not public.
PRIVATE_MODULES = re.compile(r"keras\.src|tensorflow\.(python|core|tsl|compiler)\b")
# The modules of compat that hold private API, all of them.
PRIVATE_HOMES = {
    "keras_graphs.py",
    "keras_private.py",
    "tensorflow_private.py",
    "onednn.py",
    "tf_data.py",
}


def folders():
    return [PACKAGE, *(path for path in sorted(PACKAGE.rglob("*")) if list(path.glob("*.py")))]


@pytest.mark.parametrize("folder", folders(), ids=lambda path: path.name)
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    assert len(list(folder.glob("*.py"))) <= MOST_FILES


def test_nothing_stands_outside_the_folders():
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "version.py",
    }


def code_of(path):
    """A module's names of modules: imported, or handed to `import_module`."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name == "import_module":
                yield str(node.args[0].value)


def test_private_api_has_one_home():
    homes = set()
    for path in SOURCES:
        private = [name for name in code_of(path) if PRIVATE_MODULES.match(name)]
        if private:
            assert path.parent.name == "compat", f"{path} uses {private}"
            homes.add(path.name)
    assert homes <= PRIVATE_HOMES
    assert {path.name for path in (PACKAGE / "compat").glob("*.py")} >= PRIVATE_HOMES


def test_files_can_be_read_at_a_sitting():
    for path in SOURCES:
        assert path.read_text(encoding="utf-8").count("\n") <= MOST_LINES, path


def test_functions_can_be_seen_at_once():
    """Their docstrings and nested functions included."""
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (function.end_lineno or 0) - function.lineno + 1
                assert lines <= MOST_LINES_OF_A_FUNCTION, f"{path}: {function.name}"


def test_imports_stand_at_the_top():
    """But for optional extras, which say so when they are not there."""
    optional = {
        "matplotlib",
        "nncf",
        "onnx",
        "onnxruntime",
        "openvino",
        "pyclblast",
        "pyopencl",
        "tf2onnx",
        "tensorboard",
        "ray",
        "sklearn",
        "torch",
    }
    for path in SOURCES:
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                if isinstance(node, ast.ImportFrom):
                    names = {node.module or ""}
                elif isinstance(node, ast.Import):
                    names = {alias.name for alias in node.names}
                else:
                    continue
                assert {name.split(".")[0] for name in names} <= optional, f"{path}: {names}"
