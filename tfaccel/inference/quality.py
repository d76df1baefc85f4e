"""The metric of predictions by the user's labels, and how much of it 8 bits may cost."""

import dataclasses
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras
import numpy as np

from tfaccel.inference.sample import sample_size
from tfaccel.measure.timing import Clock

# The values of `allow`: candidates that are not held to the tolerance.
ALLOWED = ("int8",)
Metric = Callable[[Any, Any], Any]


@dataclasses.dataclass(frozen=True)
class Quality:
    """Labelled samples, and the metric on them.

    Attributes:
        x: the inputs of all samples, as tensors in the model's structure.
        y: their labels, as arrays in any structure.
        metric: takes labels and predictions; larger is better.
        max_drop: how much less of the metric is allowed.
        seconds: by `clock`, in which ops that 8 bits harm may be looked for.
    """

    x: Any
    y: Any
    metric: Metric
    max_drop: float
    seconds: float = float("inf")
    clock: Clock = time.perf_counter

    @property
    def count(self) -> int:
        """How many samples there are."""
        return sample_size(self.x) or 0

    def batches(self, size: int) -> Iterator[tuple[Any, int]]:
        """All inputs in batches of one size, and how many rows of each, its last ones, are new.

        The last batch reaches back into the one before, so that no other size is compiled for.
        """
        size = min(size, self.count)
        for start in range(0, self.count, size):
            new = min(size, self.count - start)
            stop = start + new
            yield keras.tree.map_structure(lambda x, stop=stop: x[stop - size : stop], self.x), new

    def score(self, predictions: Any, rows: Any = slice(None)) -> float:
        """The metric of predictions for all samples, or for some rows of them.

        Args:
            predictions: arrays, in the structure of the model's outputs.
            rows: the places of the samples that they are for, or a slice; all by default.

        Raises:
            ValueError: the metric can't be computed.
        """
        labels = keras.tree.map_structure(lambda y: y[rows], self.y)
        if isinstance(self.metric, keras.metrics.Metric):
            self.metric.reset_state()
        try:
            return float(np.mean(np.asarray(self.metric(labels, predictions), np.float64)))
        except Exception as error:
            told = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"`metric` can't be computed of `y` and predictions: {told}"
            ) from error

    def timer(self) -> Callable[[], bool]:
        """Gives a function that tells whether there is time left, from now on."""
        start = self.clock()
        return lambda: self.clock() - start < self.seconds

    def violation(self, before: float, after: float) -> str | None:
        """A sentence on a metric that fell too far; None where it did not."""
        if before - after <= self.max_drop:
            return None
        return (
            f"the metric is {after:.4g} in place of {before:.4g}, {before - after:.2g} less; "
            f"max_drop={self.max_drop:g} is allowed"
        )


def asked_quality(
    x: Any, y: Any, allow: Collection[str], max_drop: float, metric: str | Metric
) -> Quality | None:
    """The user's arguments as a `Quality`; None without labels.

    Raises:
        TypeError, ValueError: an argument breaks its rule; the message names it.
    """
    _check_allow(allow)
    if isinstance(max_drop, bool) or not isinstance(max_drop, int | float):
        raise TypeError(f"`max_drop` must be a number. Received: {max_drop!r}")
    if not 0 <= max_drop < float("inf"):
        raise ValueError(f"`max_drop` must be at least 0 and finite. Received: {max_drop!r}")
    if not callable(metric) and metric != "accuracy":
        raise ValueError(
            "`metric` must be 'accuracy', or a function of labels and predictions whose larger "
            f"results are better. Received: {metric!r}"
        )
    if y is None:
        if allow:
            raise ValueError(
                f"`allow={tuple(allow)!r}` needs `y`, the labels of `sample`: they show "
                "how much accuracy 8 bits cost. Received: y=None"
            )
        return None
    labels, count = _as_arrays(y), sample_size(x)
    if {len(one) if one.ndim else -1 for one in keras.tree.flatten(labels)} != {count}:
        shapes = [one.shape for one in keras.tree.flatten(labels)]
        raise ValueError(
            f"`y` must have a label for each of the {count} samples. "
            f"Received: labels of shape {', '.join(map(str, shapes))}"
        )
    return Quality(x, labels, metric if callable(metric) else accuracy, float(max_drop))


def accuracy(labels: Any, predictions: Any) -> float:
    """The share of samples whose class is the label's.

    Labels are classes or one-hot rows. For one number a prediction, 0.5 divides two classes.
    """
    if keras.tree.is_nested(labels) or keras.tree.is_nested(predictions):
        raise ValueError("'accuracy' is for one output; give a function for several")
    y, p = np.asarray(labels), np.asarray(predictions, np.float64)
    if y.dtype.kind not in "biuf":
        raise ValueError(f"'accuracy' is for labels that are numbers, and these are {y.dtype}")
    if p.ndim < 2 or p.shape[-1] == 1:
        return float(np.mean((p.reshape(y.shape) > 0.5) == (y > 0.5)))
    found = p.argmax(-1)
    y = y.argmax(-1) if y.shape == p.shape else y.reshape(found.shape)
    return float(np.mean(found == y))


def _as_arrays(y: Any) -> Any:
    """Labels as arrays in their structure; a list of plain numbers is one array."""
    plain = not any(hasattr(leaf, "shape") for leaf in keras.tree.flatten(y))
    if plain and isinstance(y, list | tuple):
        return np.asarray(y)
    return keras.tree.map_structure(np.asarray, y)


def _check_allow(allow: Any) -> None:
    if isinstance(allow, str) or not isinstance(allow, Collection):
        raise TypeError(f"`allow` must be a tuple of names, such as ('int8',). Received: {allow!r}")
    unknown = [name for name in allow if name not in ALLOWED]
    if unknown:
        allowed = " or ".join(map(repr, ALLOWED))
        raise ValueError(f"`allow` must have no name but {allowed}. Received: {unknown[0]!r}")
