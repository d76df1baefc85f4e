"""The image example: what it takes, what it refuses, a short training, and the demo's table."""

import io
import json
import subprocess
import sys

import _datasets
import demo
import numpy as np
import pytest
from programs_run import ROOT
from rich.console import Console

PNG = b"\x89PNG"


def arrays(**changed):
    """Sixteen images of 8x8 in two classes, and as many to test on."""
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 2
    images = (rng.uniform(0, 100, (16, 8, 8)) + 100 * labels[:, None, None]).astype("uint8")
    return {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | changed


def test_images_become_fractions_with_a_channel():
    found = _datasets.prepare("own", arrays(), image_size=10)
    assert found.image_shape == (10, 10, 1)
    assert found.classes == 2
    assert found.train[0].max() <= 1
    assert len(found.train[0]) + len(found.validation[0]) == 16


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"x_train": np.zeros((16, 8))}, "x_train"),
        ({"x_train": np.zeros((16, 8, 8), "int64")}, "x_train"),
        ({"x_train": np.full((16, 8, 8), np.nan)}, "x_train"),
        ({"x_test": np.zeros((16, 9, 8))}, "x_test"),
        ({"x_train": np.zeros((16, 4, 4)), "x_test": np.zeros((16, 4, 4))}, "--image_size"),
        ({"y_train": np.arange(16) % 2 + 1}, "y_train"),
        ({"y_test": np.arange(16) % 3}, "y_test"),
        ({"y_test": np.arange(16) / 2}, "y_test"),
    ],
)
def test_arrays_that_break_a_rule_are_refused_by_name(changed, named):
    with pytest.raises(_datasets.DatasetError, match=named):
        _datasets.prepare("own", arrays(**changed))


def test_files_that_hold_something_else_are_refused(tmp_path):
    lacking, text = tmp_path / "lacking.npz", tmp_path / "text.npz"
    np.savez(lacking, x_train=np.zeros(3))
    text.write_text("no archive")
    with pytest.raises(_datasets.DatasetError, match="y_train, x_test, y_test"):
        _datasets.read_file(lacking)
    with pytest.raises(_datasets.DatasetError, match="can't be read"):
        _datasets.read_file(text)


def test_it_compares_two_trainings_of_a_file(tmp_path):
    np.savez(tmp_path / "own.npz", **arrays())
    script = str(ROOT / "examples" / "image_classifier.py")
    words = [f"--data_file={tmp_path / 'own.npz'}", "--epochs=2", "--compare", "--batch_size=8"]
    words.append(f"--summary_file={tmp_path / 'summary.json'}")
    done = subprocess.run(
        [sys.executable, script, *words], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "fit, seconds" in done.stdout
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["stock"]["fit_seconds"] > 0
    assert summary["plan"] == "baseline"  # four steps are too few
    assert (tmp_path / "own.png").read_bytes().startswith(PNG)


def test_the_demo_shows_both_in_a_table_and_a_picture(tmp_path):
    run = {"fit_seconds": 20.0, "test_accuracy": 0.9}
    found = {
        "images": {"stock": run, "accelerated": run | {"fit_seconds": 10.0}, "plan": "kernels"}
    }
    console = Console(width=100, file=io.StringIO())
    console.print(demo.table(found))
    assert {"20.0", "10.0", "2.00x"} <= set(console.file.getvalue().split())
    demo.draw(found, str(tmp_path / "demo.png"))
    assert (tmp_path / "demo.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize(
    "script", ["as_an_example.py", pytest.param("image_classifier.py", marks=pytest.mark.slow)]
)
def test_the_demo_ends_as_the_example_does(script, tmp_path, capfd):
    """By a program that ends as the example does, which takes TensorFlow's import to get there."""
    if script == "as_an_example.py":
        script = tmp_path / script
        script.write_text("import sys\nsys.exit('there is no such file: ' + sys.argv[2])\n")
    with pytest.raises(SystemExit) as ended:
        demo.trained(str(script), ["--data_file=nowhere.npz"])
    assert ended.value.code
    assert "there is no such file" in capfd.readouterr().err
