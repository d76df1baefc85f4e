"""Trains images and spoken words with and without tfaccel, and shows what was won in one table.

python examples/demo.py --picture demo.png
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import matplotlib
from absl import app, flags
from matplotlib import pyplot
from rich.console import Console
from rich.table import Table

_PICTURE = flags.DEFINE_string("picture", "demo.png", "where the picture is written")
_FOLDER = pathlib.Path(__file__).parent
_EXAMPLES = {
    "images": "image_classifier.py",
    "spoken words": "speech_classifier.py",
}
# What TensorFlow says as it starts, whatever its log level is.
_START_UP = re.compile(r"WARNING: All log messages before absl|[IW]\d{4} |To enable the following")


def trained(script: str, arguments: list[str]) -> dict[str, Any]:
    """What an example says of its two trainings; it prints as it goes.

    Exits as the example does where that fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        summary = pathlib.Path(folder) / "summary.json"
        words = [sys.executable, str(_FOLDER / script), *arguments]
        words += [f"--summary_file={summary}", "--picture_file="]
        environ = {"TF_CPP_MIN_LOG_LEVEL": "2"} | os.environ
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environ) as child:
            for line in child.stderr or ():
                if not _START_UP.match(line):
                    sys.stderr.write(line)
        if child.returncode:
            sys.exit(child.returncode)
        return json.loads(summary.read_text(encoding="utf-8"))


def table(found: dict[str, dict[str, Any]]) -> Table:
    """Both examples in one table: whole fits, tuning included."""
    shown = Table(title="Whole trainings, the search for a plan included")
    for column in ("", "stock Keras", "with tfaccel", "speedup", "accuracy of both"):
        shown.add_column(column, justify="right" if column else "left")
    for name, one in found.items():
        stock, accelerated = one["stock"], one["accelerated"]
        shown.add_row(
            name,
            f"{stock['fit_seconds']:.1f} s",
            f"{accelerated['fit_seconds']:.1f} s",
            f"{stock['fit_seconds'] / accelerated['fit_seconds']:.2f}x",
            f"{stock['test_accuracy']:.3f} / {accelerated['test_accuracy']:.3f}",
        )
    return shown


def draw(found: dict[str, dict[str, Any]], path: str) -> None:
    """Draws the seconds of all trainings as bars."""
    matplotlib.use("agg")
    figure, axes = pyplot.subplots(figsize=(6.4, 2.4), layout="constrained")
    for side, (key, label) in enumerate((("stock", "stock Keras"), ("accelerated", "tfaccel"))):
        places = [place + 0.38 * side for place in range(len(found))]
        axes.barh(places, [one[key]["fit_seconds"] for one in found.values()], 0.36, label=label)
    axes.set_yticks([place + 0.19 for place in range(len(found))], list(found))
    axes.invert_yaxis()
    axes.set_xlabel("seconds of a whole training")
    axes.legend()
    figure.savefig(path, dpi=150)


def main(argv: list[str]) -> None:
    """Runs both examples; what follows `--` goes to each of them."""
    found = {name: trained(script, argv[1:]) for name, script in _EXAMPLES.items()}
    Console().print(table(found))
    for name, one in found.items():
        print(f"{name}: {one['plan']}")
    draw(found, _PICTURE.value)
    print(f"The picture: {_PICTURE.value}")


if __name__ == "__main__":
    app.run(main)
