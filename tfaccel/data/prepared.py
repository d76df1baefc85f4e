"""Prepared: a dataset that knows how it was made."""

import dataclasses
from collections.abc import Callable
from typing import Any

import rich.console
import tensorflow as tf
from rich.markup import escape

from tfaccel.data._measure import Timings
from tfaccel.data._pipeline import Layout
from tfaccel.data.findings import Findings
from tfaccel.measure.tables import terminal_table
from tfaccel.measure.units import milliseconds


@dataclasses.dataclass(frozen=True)
class Account:
    """What `prepare` decided, and why.

    Attributes:
        layout: how the pipeline is run.
        timings: what was measured; empty where nothing was.
        notes: the reasons; a sentence each.
    """

    layout: Layout
    timings: Timings = Timings()  # noqa: RUF009 (frozen)
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """The layout, the pace, and what sets it."""
        said = f"tfaccel.data: {self.layout}."
        seconds = self.timings.layouts.get(dataclasses.replace(self.layout, cached=False))
        if seconds is not None:
            name, cost = self.timings.bound_by, self.timings.parts[self.timings.bound_by]
            said += f" A batch takes {milliseconds(seconds)} by itself; bound by `{name}` "
            said += f"({milliseconds(cost)} in one thread)."
            cached = self.timings.cached_seconds
            if self.layout.cached and cached is not None:
                said += f" From the cache a batch's samples come in {milliseconds(cached)}."
        return " ".join([said, *self.notes])

    def __rich__(self) -> rich.console.Group:
        rows = [(name, milliseconds(seconds)) for name, seconds in self.timings.parts.items()]
        rows += [(f"all: {layout}", milliseconds(s)) for layout, s in self.timings.layouts.items()]
        table = [terminal_table(("part", "a batch"), rows, numbers=["a batch"])] if rows else []
        return rich.console.Group(*table, escape(self.summary()))


class Prepared(tf.data.Dataset):
    """What `prepare` returns: a `tf.data.Dataset` to be given to `fit`, `evaluate`, `predict`.

    Attributes:
        account: how the pipeline is run, what was measured, and the reasons.
    """

    def __init__(self, dataset: tf.data.Dataset, account: Account, found: Callable[[], Findings]):
        self._dataset = dataset
        self.account = account
        self._found = found
        super().__init__(tf.data.experimental.to_variant(dataset))

    @property
    def findings(self) -> Findings:
        """What validation found so far; nothing without `validate`."""
        return self._found()

    @property
    def element_spec(self) -> Any:
        """The specs of an element, as of any `tf.data.Dataset`."""
        return self._dataset.element_spec

    def _inputs(self) -> list[tf.data.Dataset]:
        # tf.data asks every dataset for this, to collect its options.
        return [self._dataset]
