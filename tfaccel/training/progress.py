"""What a training tells of its length."""

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
        """Calls that are to come; None when unknown."""

    @property
    def grows(self) -> bool:
        """Whether more steps are to come, as far as is known, the more were made."""

    @property
    def room(self) -> int:
        """How many calls are sure to come from now on before anybody looks at the model."""
