"""Writes what the documents say of benchmarks/results: a table, a page of results, pictures.

README's table is between two comments; docs/benchmarks.md has every results file. A test compares
both with the results, so that neither can go stale.

    python benchmarks/documents.py
"""

import itertools
import json
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import _common
import matplotlib
from absl import app
from matplotlib import pyplot

# The machine of README's table.
_MACHINE = "intel-xeon-amx-bf16-2-cores-onednn-on"
_NAMES = {
    "resnet50": "ResNet50, 64x64",
    "unet_1d": "1-D U-Net, 2048x4",
    "gru_tagger": "GRU tagger, 64 tokens",
    "speech_cnn": "speech CNN, 98x40",
    "lstm": "two LSTM layers, 60x16",
    "transformer": "transformer, 128 tokens",
    "vit_tiny": "ViT-tiny, 32x32",
    "mobilenet_v2": "MobileNetV2, 96x96",
    "efficientnet_b0": "EfficientNetB0, 96x96",
    "conv_lstm": "Conv1D + LSTM, 98x40",
    "unet": "U-Net, 64x64",
    "mlp": "MLP, 784 inputs",
    "cnn": "CNN, 32x32",
    "embedding": "recommender, two tables of 200,000",
}
_IN_README = tuple(_NAMES)[:8]
# The batch whose predictions README tells of; the page of benchmarks has all.
_README_BATCH = "batch 8"
# What the page of results begins with; the others follow by the alphabet.
_FIRST = (
    "A training step, stock Keras and tfaccel",
    "A whole fit that takes stock Keras about 90 s",
    "Whole programs with and without `tfaccel run`",
    "Predictions in turns with predict_on_batch: tfaccel, and engines by hand",
)
_README, _PAGE = _common.REPOSITORY / "README.md", _common.REPOSITORY / "docs" / "benchmarks.md"
_PICTURES = _common.REPOSITORY / "docs" / "images"
_MARKED = re.compile(r"(<!-- results: [^\n]*-->\n).*?(<!-- end of results -->)", flags=re.DOTALL)


def rows_of(name: str) -> dict[str, dict[str, Any]]:
    """The rows of a results file of README's machine, by model."""
    path = _common.RESULTS / f"{name}-{_MACHINE}.json"
    if not path.exists():
        return {}
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["model"]: row for row in rows if "error" not in row}


def readme_table() -> str:
    """The table of steps and whole calls of `fit`, in Markdown."""
    steps, fits = rows_of("training"), rows_of("whole-fit-90s")
    lines = [
        "| model | stock, ms | tfaccel, ms | speedup of a step [95 %] | `fit` of 90 s |",
        "| --- | ---: | ---: | --- | ---: |",
    ]
    for model in sorted(_IN_README, key=lambda name: -steps[name]["speedup"]):
        row = steps[model]
        times = [_common.milliseconds(row[key]) for key in ("stock_step_seconds", "step_seconds")]
        whole = f"{fits[model]['speedup']:.2f}x" if model in fits else "-"
        cells = [_NAMES[model], *times, _interval(row), whole]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _interval(row: dict[str, Any]) -> str:
    low, high = row["speedup_interval"]
    return f"{row['speedup']:.2f}x [{low:.2f}, {high:.2f}]"


def readme_words() -> str:
    """Fits of ten minutes, and a line for each model that predicts in batches beside engines."""
    fits = rows_of("whole-fit-600s").items()
    whole = ", ".join(f"{_short(name)} {fit['speedup']:.2f}x in ten minutes" for name, fit in fits)
    lines = [
        f"Longer trainings gain more, as the search is paid for once{': ' * bool(whole)}{whole}.",
        f"Predictions ({_README_BATCH}, 224x224) by `tfaccel.accelerate`, without further packages",
        "and with OpenVINO and ONNX Runtime installed:",
    ]
    for name, row in rows_of("inference-engines").items():
        model, batch = name.split(", ")
        if batch == _README_BATCH:
            plans, engines = (
                _ratio(row["speedup"][side]) for side in ("TensorFlow's plans", "with engines")
            )
            lines.append(f"{_short(model)} {plans} and {engines};")
    lines[-1] = lines[-1].removesuffix(";") + "."
    return "\n".join(lines) + "\n"


def _short(model: str) -> str:
    return _NAMES[model].partition(",")[0]


def _ratio(interval: list[float]) -> str:
    return "{:.2f}x [{:.2f}, {:.2f}]".format(*interval)


def readme() -> str:
    """README with its table as the results have it now."""
    text = _README.read_text(encoding="utf-8")
    parts = iter((readme_table, readme_words))
    return _MARKED.sub(lambda found: found[1] + next(parts)() + found[2], text)


def page() -> str:
    """docs/benchmarks.md: every results file, by what was measured."""
    lines = [
        "# Benchmarks",
        "",
        "Each table is the latest result of one command on one class of machine: its instruction",
        "set, its cores, and whether TensorFlow runs oneDNN's kernels there. `benchmarks/results`",
        "has the same as JSON, with all trials. `python benchmarks/documents.py` writes this page.",
        "",
        "![Speedup of a training step, by model](images/speedups.svg)",
        "",
        "![Speedup of a whole fit of 90 s, by model](images/fits.svg)",
    ]
    for title, parts in itertools.groupby(_tables(), key=lambda one: one[0]):
        lines += ["", f"## {title}"]
        for _, machine, body in parts:
            # No heading: the site's list of contents would hold each machine many times.
            lines += ["", f"**{machine}**", "", body]
    return "\n".join(lines) + "\n"


def _tables() -> Iterator[tuple[str, str, str]]:
    """Of each results file its title, its machine and what stands below that."""
    found = []
    for path in sorted(_common.RESULTS.glob("*.md")):
        heading, _, machine, body = path.read_text(encoding="utf-8").split("\n", 3)
        commands, _, tables = body.strip().partition("\n\n")
        title = heading.removeprefix("# ")
        found.append((title, machine.rstrip("."), f"{tables}\n\n{commands}"))
    yield from sorted(found, key=lambda one: (*_place(one[0]), one[1]))


def _place(title: str) -> tuple[int, str]:
    return (_FIRST.index(title) if title in _FIRST else len(_FIRST), title)


def draw_steps(path: pathlib.Path) -> None:
    """Draws the speedups of a step of all models of README's machine, with their intervals."""
    rows = sorted(rows_of("training").values(), key=lambda row: row["speedup"])
    gains = {_NAMES[row["model"]]: row["speedup"] for row in rows}
    spread = [
        [abs(row["speedup_interval"][end] - row["speedup"]) for row in rows] for end in (0, 1)
    ]
    label = "speedup of a training step over stock Keras, with its 95 % interval"
    _draw(gains, spread, label, path)


def draw_fits(path: pathlib.Path) -> None:
    """Draws the speedups of whole fits of all models of README's machine, with their range."""
    rows = sorted(rows_of("whole-fit-90s").values(), key=lambda row: row["speedup"])
    gains = {_NAMES.get(row["model"], row["model"]): row["speedup"] for row in rows}
    spread = [
        [row["speedup"] - min(row["speedups"]) for row in rows],
        [max(row["speedups"]) - row["speedup"] for row in rows],
    ]
    label = "speedup of a whole fit of 90 s over stock Keras, the search included"
    _draw(gains, spread, label, path)


def _draw(
    gains: dict[str, float], spread: list[list[float]], label: str, path: pathlib.Path
) -> None:
    matplotlib.use("svg")
    with matplotlib.rc_context({"svg.hashsalt": "tfaccel", "font.size": 9}):
        figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
        axes.barh(list(gains), list(gains.values()), xerr=spread, color="#4c8dae")
        axes.axvline(1, color="#555555", linewidth=1)
        # Below the axes alone, which are narrower than the picture, it would be cut off.
        figure.supxlabel(label, fontsize="medium")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    _README.write_text(readme(), encoding="utf-8")
    _PAGE.write_text(page(), encoding="utf-8")
    _PICTURES.mkdir(exist_ok=True)
    draw_steps(_PICTURES / "speedups.svg")
    draw_fits(_PICTURES / "fits.svg")


if __name__ == "__main__":
    app.run(main)
