"""Looks at batches and predictions as they pass."""

from typing import Any

import keras
import tensorflow as tf

from tfaccel.data._components import Component, Role, components, rows
from tfaccel.data._looking import Log
from tfaccel.data._values import examine
from tfaccel.data.findings import Findings
from tfaccel.data.rules import Rules
from tfaccel.measure.finite import all_finite_in_graph
from tfaccel.system import notices

_NAME = "prediction"


class Watch:
    """Looks for NaN and Inf in what a model is given and in what it predicts."""

    def __init__(self):
        self._log = Log("predictions")
        self._rules = Rules()
        self._batches = 0
        self._repaired = 0

    def look(self, inputs: list[Any], outputs: Any) -> None:
        """Looks at batches and at what was predicted for them."""
        start = end = self._log.samples
        for x in inputs:
            count = _rows(x)
            indices = range(end, end + count)
            examine(components((x,)), self._rules, self._log, indices=indices, number=self._batches)
            self._batches, end = self._batches + 1, end + count
        predicted = [part for part in _parts(outputs) if part.value.shape.rank]
        if end > start and predicted:
            examine(predicted, self._rules, self._log, indices=range(start, end))
        self._log.count(samples=end - start)

    def repaired(self, inputs: list[Any]) -> None:
        """Counts samples whose first predictions were not finite, and were replaced."""
        self._repaired += sum(map(_rows, inputs))

    def findings(self) -> Findings:
        """What was found."""
        return self._log.findings()

    def tell(self) -> Findings:
        """Warns of what was found, and returns it."""
        found = self.findings()
        count = sum(found.counts.values())
        said = []
        if count:
            first = found.faults[0]
            said.append(
                f"{count} fault{'s' * (count > 1)} in inputs and predictions; the first: "
                f"{first.where}: {first.reason}. `.findings` has all; no sample was left out"
            )
        if self._repaired:
            said.append(
                f"the plan's predictions for {self._repaired} samples had NaN or Inf where the "
                "model's own have none: these batches were given the model's own predictions"
            )
        if said:
            notices.warn(f"tfaccel: {'; '.join(said)}.", RuntimeWarning, stacklevel=3)
        return found


def is_finite(outputs: Any) -> bool:
    """Whether no floating-point number in a structure of tensors is NaN or Inf."""
    return bool(all_finite_in_graph(outputs))


def _rows(x: Any) -> int:
    return next((rows(leaf) or 0 for leaf in tf.nest.flatten(x) if rows(leaf) is not None), 0)


def _parts(outputs: Any) -> list[Component]:
    return [
        Component(_NAME + "".join(f"[{step!r}]" for step in path), _NAME, Role.LABEL, leaf)
        for path, leaf in keras.tree.flatten_with_path(outputs)
    ]
