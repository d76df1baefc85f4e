"""The classes of passes by their names. The built-in ones are loaded when one is looked for."""

import difflib
import importlib
from typing import Any

_KNOWN: dict[str, Any] = {}
# Above this folder, and therefore known by its name alone.
_BUILT_IN = "tfaccel.passes"


def add(name: str, kind: Any) -> None:
    """A class is defined; TypeError where another pass has its name."""
    known = _KNOWN.get(name)
    if known is not None and known.__qualname__ != kind.__qualname__:
        raise TypeError(f"The pass name {name!r} is taken by {known.__module__}.")
    _KNOWN[name] = kind


def found(name: Any) -> Any | None:
    """The class of the pass called `name`; None where there is none."""
    if not isinstance(name, str):
        return None
    if name not in _KNOWN:
        importlib.import_module(_BUILT_IN)
    return _KNOWN.get(name)


def needed(name: Any) -> Any:
    """The class of the pass called `name`; ValueError, with what is meant, where there is none."""
    kind = found(name)
    if kind is None:
        known = names()
        near = " or ".join(map(repr, difflib.get_close_matches(str(name), known)))
        hint = f" Did you mean {near}?" if near else ""
        raise ValueError(f"No pass is called {name!r}.{hint} Known: {', '.join(known)}")
    return kind


def names() -> list[str]:
    """Those of all passes that are known, sorted."""
    importlib.import_module(_BUILT_IN)
    return sorted(_KNOWN)
