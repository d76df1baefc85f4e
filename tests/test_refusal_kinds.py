"""Each refusal of a kernel or an engine is of a kind of its own, for code that asks."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "tfaccel"
SOURCES = [
    path
    for folder in ("ops/kernels", "inference/engines")
    for path in sorted((PACKAGE / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_no_refusal_is_left_without_a_kind(path):
    """`Unsupported(...)` is what a user's own kernel says; ours is `Refusal.SHAPE(...)`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    called = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [getattr(found, "id", getattr(found, "attr", "")) for found in called]
    assert not {"Unsupported", "CASE"} & {*names}
