"""Which class a network takes for which: as a matrix, in words, and as a picture."""

import os
from collections.abc import Sequence

import numpy as np
from _picture import load_matplotlib


def confusion(labels: np.ndarray, predictions: np.ndarray, classes: int) -> np.ndarray:
    """How often each class (row) was taken for each class (column); int64."""
    pairs = np.bincount(classes * labels + predictions, minlength=classes**2)
    return pairs.reshape(classes, classes)


def most_confused(matrix: np.ndarray, names: Sequence[str]) -> str:
    """The most frequent mistake in a sentence."""
    mistakes = matrix - np.diag(np.diag(matrix))
    if not mistakes.any():
        return "No mistakes."
    truth, taken = np.unravel_index(mistakes.argmax(), mistakes.shape)
    count, total = mistakes[truth, taken], matrix[truth].sum()
    return (
        f"The most frequent mistake: {names[truth]} taken for {names[taken]}, {count} of {total}."
    )


def draw(matrix: np.ndarray, names: Sequence[str], path: str | os.PathLike[str]) -> None:
    """Draws the matrix into a file, whose ending says of which kind (.png, .svg, .pdf).

    A row's colours are shares of its class; the numbers are counts.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
        OSError, ValueError: the file can't be written, or not of that kind.
    """
    side = 2 + 0.45 * len(names)
    figure = load_matplotlib().figure.Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.add_subplot()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the spoken word")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("heard")
    axes.set_ylabel("spoken")
    accuracy = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{accuracy:.1%} of {matrix.sum()} right")
    for (row, column), count in np.ndenumerate(matrix):
        if count:
            # White on dark cells, black on light ones.
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    figure.savefig(path, dpi=150)
