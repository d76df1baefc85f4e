"""Warnings and output beside a training, which never break the training."""

import logging
import warnings

import rich.console

_LOGGER = logging.getLogger("tfaccel")


def warn(message: str, category: type[Warning] = UserWarning, stacklevel: int = 1) -> None:
    """Warns as `warnings.warn` does; writes to the log where the user has made warnings errors.

    A warning of tfaccel's says that something was left as it was. As an error, in the middle of a
    step, it would end the training that it says is going on. `stacklevel` is seen from the caller.
    """
    try:
        warnings.warn(message, category, stacklevel + 1)
    except Warning:
        _LOGGER.warning(message)


def show(*shown: rich.console.RenderableType, stderr: bool = False) -> None:
    """Prints, each on lines of its own, if there is a standard output (or error) to print to."""
    try:
        console = rich.console.Console(stderr=stderr)
        for one in shown:
            console.print(one)
    except (AttributeError, OSError, ValueError):
        return  # closed, or none


def say(line: str) -> None:
    """Prints a line as it is, if there is a standard output to print to."""
    try:
        print(line)
    except (AttributeError, OSError, ValueError):
        return
