"""What a step's logs say: which of them are losses, and which are not finite."""

from collections.abc import Mapping
from typing import Any

from tfaccel.measure.finite import all_finite


def tells_loss(name: str) -> bool:
    """Whether a log has the name of a loss."""
    return "loss" in name


def judged(logs: Any) -> dict[str, Any]:
    """The logs that a step is judged by.

    The log `loss`; without it those with the name of a loss; without those all logs.
    """
    named = logs if isinstance(logs, Mapping) else {"loss": logs}
    names = ["loss"] if "loss" in named else list(filter(tells_loss, named)) or list(named)
    return {name: named[name] for name in names}


def not_finite(logs: Any) -> frozenset[str]:
    """The names of the logs that a step is judged by and that are not finite."""
    return frozenset(name for name, log in judged(logs).items() if not all_finite(log))
