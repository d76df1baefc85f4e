"""Modules that are loaded when something of them is first asked for.

What decides whether anything pays is loaded with AccelCallback; what tries, races, reports and
profiles is loaded where that is done, as a short training does none of it. A module that is for
later is named at the top of a file as all others are, and once more for those who run the code:

    if TYPE_CHECKING:
        from tfaccel.autotune import training_trials
    else:
        training_trials = later("tfaccel.autotune.training_trials")

So checkers of types and of the import contract see an import, and `tests/test_start.py` holds what
a fit that tries nothing may load. Such a name is used as a module alone, within functions.
"""

import importlib
from typing import Any


class Later:
    """Stands for a module, and loads it when an attribute of it is asked for.

    Args:
        name: the module's.
    """

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)

    def __repr__(self) -> str:
        return f"<{self._name}, for later>"


def later(name: str) -> Any:
    """The module of this name, which need not be loaded yet."""
    return Later(name)
