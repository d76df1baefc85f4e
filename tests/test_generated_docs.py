"""What documents say of benchmarks/results is what the results say."""

import importlib
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
BENCHMARKS = [
    path
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "app.run(main)" in path.read_text()
]


@pytest.fixture
def documents(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("documents")


def test_the_table_of_the_readme(documents):
    text = (ROOT / "README.md").read_text()
    assert text == documents.readme()  # else: python benchmarks/documents.py
    assert text.count("x [") >= 8


def test_the_page_of_benchmarks(documents):
    assert (ROOT / "docs" / "benchmarks.md").read_text() == documents.page()


@pytest.mark.slow
@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_benchmark_starts(path):
    words = [sys.executable, str(path), "--help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert path.name in done.stdout


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120
