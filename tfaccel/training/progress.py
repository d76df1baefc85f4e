"""How long a training is."""

from typing import Protocol


class Progress(Protocol):
    """How far a training has come, and how much of it is to follow."""

    @property
    def epoch(self) -> int:
        """A number that changes when more is known of the length."""

    @property
    def epochs_left(self) -> int:
        """The epochs that are not over yet, this one among them."""

    @property
    def steps_to_come(self) -> int | None:
        """How many calls are to come; None where unknown."""

    @property
    def grows(self) -> bool:
        """Whether the known number of steps to come grows with the steps that were made."""

    @property
    def room(self) -> int:
        """How many calls are sure to come from now on before anybody looks at the model."""
