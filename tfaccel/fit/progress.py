"""How far a `fit` has come, and how many steps follow."""

import math
import sys
from collections.abc import Callable

import keras


class Progress:
    """Counts the steps of one `fit`.

    Args:
        model: whose fit it is.
        epochs: of the fit.
        batches_per_epoch: None when unknown; the first epoch then shows it.
        calls: how often Keras has called the train function in this fit.
    """

    def __init__(
        self,
        model: keras.Model,
        epochs: int,
        batches_per_epoch: int | None,
        calls: Callable[[], int],
    ):
        self._model = model
        self._epochs = epochs
        self._batches_per_epoch = batches_per_epoch
        self._calls = calls
        self._epoch = 0
        self._calls_before_epoch = 0

    def begin_epoch(self, epoch: int) -> None:
        """Begins an epoch; the length of the one before is known now."""
        if self._calls_in_epoch and self._batches_per_epoch is None:
            self._batches_per_epoch = self._calls_in_epoch * self._model.steps_per_execution
        self._epoch, self._calls_before_epoch = epoch, self._calls()

    @property
    def epoch(self) -> int:
        """The epoch that the fit is in, counted from 0."""
        return self._epoch

    @property
    def epochs_left(self) -> int:
        """The epochs that are not over yet, this one among them."""
        return self._epochs - self._epoch

    @property
    def steps_to_come(self) -> int | None:
        """Calls that Keras will make until the fit ends as planned; None when unknown."""
        calls = self._calls_per_epoch
        return None if calls is None else max(0, self.epochs_left * calls - self._calls_in_epoch)

    @property
    def grows(self) -> bool:
        """Whether the number of steps to come grows with those made: never, as epochs are fixed."""
        return False

    @property
    def room(self) -> int:
        """How many calls Keras is sure to make, or to find the data's end in, from now on."""
        if self._model.stop_training:
            return 1
        calls = self._calls_per_epoch
        return sys.maxsize if calls is None else max(1, calls - self._calls_in_epoch)

    @property
    def _calls_in_epoch(self) -> int:
        return self._calls() - self._calls_before_epoch

    @property
    def _calls_per_epoch(self) -> int | None:
        if self._batches_per_epoch is None:
            return None
        return math.ceil(self._batches_per_epoch / self._model.steps_per_execution)
