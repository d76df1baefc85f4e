"""A picture of a training: what it learnt, and how fast a step was under each plan."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import tfaccel


def load_matplotlib() -> Any:
    """The module `matplotlib`, which only the extra `report` installs.

    Raises:
        ModuleNotFoundError: it is not installed; the message says how to.
    """
    try:
        import matplotlib
        import matplotlib.figure
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "The picture needs matplotlib: pip install 'tfaccel[report]'", name="matplotlib"
        ) from None
    return matplotlib


def draw(
    curves: Mapping[str, Sequence[float]],
    report: tfaccel.Report | None,
    path: str | os.PathLike[str],
    along: str = "epoch",
) -> None:
    """Draws the curves on the left, and the speedups of the report's trials on the right.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError, ValueError: the file can't be written, or not of the kind that its ending says.
    """
    figure = load_matplotlib().figure.Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for label, values in curves.items():
        left.plot(range(1, len(values) + 1), values, marker=".", label=label)
    left.set_xlabel(along)
    left.xaxis.get_major_locator().set_params(integer=True)
    left.legend()
    timed = {
        " +\n".join(trial.plan.names) or "your own step": trial.speedup
        for trial in (report.trials if report else ())
        if trial.speedup is not None
    }
    gains = [speedup.median for speedup in timed.values()]
    spread = [
        [speedup.median - speedup.low for speedup in timed.values()],
        [speedup.high - speedup.median for speedup in timed.values()],
    ]
    right.barh(list(timed), gains, xerr=spread, color="#4c8dae")
    right.invert_yaxis()
    right.axvline(1, color="#555555", linewidth=1)
    right.tick_params("y", labelsize=7)
    tried = any(name != "your own step" for name in timed)
    right.set_xlabel("speedup, with its 95 % interval" if tried else "nothing was tried")
    figure.savefig(path, dpi=150)


def show(
    curves: Mapping[str, Sequence[float]],
    report: tfaccel.Report | None,
    path: str | os.PathLike[str],
    along: str = "epoch",
) -> None:
    """Draws into a file and prints where it is, or how to get a picture."""
    try:
        draw(curves, report, path, along)
    except ModuleNotFoundError as error:
        print(error)
    else:
        print(f"The picture: {os.fspath(path)}")
