"""The tree is where one expects things: see "The house" in CONTRIBUTING.

Which folder may import which is checked by `make check` (import-linter, pyproject.toml).
"""

import ast
import functools
import pathlib
import re

import pytest

TESTS = pathlib.Path(__file__).parent
PACKAGE = TESTS.parent / "tfaccel"
SOURCES = sorted(PACKAGE.rglob("*.py"))
MOST_FILES = 20
MOST_LINES = 350
MOST_LINES_OF_TESTS = 400
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


@functools.cache
def nodes(path):
    """All of a module's syntax; several tests look through it."""
    return [*ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


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
    for node in nodes(path):
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


def test_files_of_tests_are_about_one_subject():
    """What several of them need has a module or, as fixtures, a `conftest.py` beside them."""
    for path in sorted(TESTS.rglob("*.py")):
        assert path.read_text(encoding="utf-8").count("\n") <= MOST_LINES_OF_TESTS, path


# Where a fault is to happen can be said of any function; these are not called by others.
MADE_TO_FAIL = {
    "_first_user",
    "_timed",
    "_rows",
    "_ineligibility",
    "_measured",
    "_history",
    # Where a fit is interrupted.
    "_run",
    "_timed_step",
    "_checked",
}
OF_KERAS = {"_losses"}


def private_names(paths):
    """What modules, classes and instances call by a name with an underscore."""
    for path in paths:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = node.name
            elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                name = getattr(node, "attr", getattr(node, "id", ""))
            else:
                continue
            if name.startswith("_") and not name.endswith("__"):
                yield name


def attributes_used(path):
    """The names of attributes of others that a module reads or sets."""
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "cls"):
            yield node.attr
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "setattr":
            named = [word.value for word in node.args[:2] if isinstance(word, ast.Constant)]
            yield from (str(name).rpartition(".")[2] for name in named)


def test_tests_use_no_private_attribute():
    """A module's name may begin with an underscore: it is its folder's own, and tested so."""
    private = set(private_names(SOURCES))
    some = re.compile(r"\._|setattr\([^)]*\b_")
    for path in sorted(TESTS.rglob("*.py")):
        if not some.search(path.read_text(encoding="utf-8")):
            continue  # to take them all apart takes seconds
        own = set(private_names([path]))
        used = private & set(attributes_used(path)) - own - MADE_TO_FAIL - OF_KERAS
        assert not used, f"{path}: {used}"


def test_functions_can_be_seen_at_once():
    """Their docstrings and nested functions included."""
    for path in SOURCES:
        for function in nodes(path):
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
        for function in nodes(path):
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
