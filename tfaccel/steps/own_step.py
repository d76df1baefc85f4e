"""The user's own step, which makes a call whenever what stands in for it can't."""

from collections.abc import Callable
from typing import Any

from tfaccel.steps.replay import END_OF_DATA, is_of_input
from tfaccel.steps.taken_batches import TakenBatches

# Told what was raised beside the user's step, and the iterator; gives the logs of another step
# that it has made, if it has.
OnFault = Callable[[Exception, Any], Any]


class OwnStep:
    """Keeps what fails beside the user's own step from those who call it.

    Each call is made by the user's step in the end, if by nothing else, on the batch that it would
    have had. What the user's step or the data raise passes through.

    Args:
        function: the user's step.
        model: whose it is.

    Attributes:
        function: as given.
        taken: the batches that are out of the iterator and that no step was made on yet.
        logs: of the call that is being made, as soon as its step was; what fails then fails beside
            it.
        raised: what the user's step has raised in this call.
    """

    def __init__(self, function: Callable[[Any], Any], model: Any):
        self.function = function
        self.taken = TakenBatches(model)
        self.logs: Any = None
        self.raised: BaseException | None = None

    def __call__(self, iterator: Any) -> Any:
        """One step of the user's own; what it raises is the user's."""
        try:
            self.logs = logs = self.function(iterator)
        except BaseException as error:
            self.raised = error
            raise
        return logs

    def note(self, logs: Any) -> None:
        """Another step was made in its place."""
        self.logs = logs

    def made(self, step: Callable[[Any], Any], iterator: Any, on_fault: OnFault) -> Any:
        """Makes one call by `step`, and by the user's own step where that fails.

        Args:
            step: runs the user's step or another, and notes the logs of another.
            iterator: what the call was handed.
            on_fault: told what failed.
        """
        self.logs = self.raised = None
        try:
            logs = step(iterator)
        except END_OF_DATA:
            raise
        except Exception as error:
            if self.is_users(error):
                raise
            logs = self._rescued(error, iterator, on_fault)
        finally:
            self.raised = None  # its traceback holds batches
        self.taken.done()
        return logs

    def is_users(self, error: Exception) -> bool:
        """Whether the user's step, or the data, would have raised it without tfaccel."""
        return error is self.raised or is_of_input(error)

    def _rescued(self, error: Exception, iterator: Any, on_fault: OnFault) -> Any:
        """The logs of a call, although tfaccel failed beside its step."""
        if self.logs is None:
            self.taken.take_back()
        logs = on_fault(error, iterator)
        logs = self.logs if logs is None else logs
        if logs is not None:
            return logs
        self.taken.take_back()
        return self(self.taken.fed(iterator))
