"""Doing something once a module has been imported, by whomever."""

from __future__ import annotations

import contextlib
import importlib.util
import sys

TYPE_CHECKING = False  # as in `typing`, which a program need not wait for
if TYPE_CHECKING:
    import types
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from typing import Any

    Then = Callable[[types.ModuleType], None]
    During = Callable[[], contextlib.AbstractContextManager[None]]


def after_import(name: str, then: Then, during: During = contextlib.nullcontext) -> None:
    """Calls `then` with a module as soon as its first import is done.

    It is called at once where the module is there already. Until then an import costs one
    comparison of names. Neither function may raise: it would be the import that fails.

    Args:
        name: a module that is not inside a package.
        then: is handed the module.
        during: a context in which the module's code runs.
    """
    module = sys.modules.get(name)
    if module is not None:
        then(module)
        return
    sys.meta_path.insert(0, _Finder(name, then, during))


class _Finder:
    """Finds the module by all other finders, and has its loader tell when it is loaded."""

    def __init__(self, name: str, then: Then, during: During):
        self._name = name
        self._then = then
        self._during = during
        self._is_asking = False
        self._is_done = False

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: types.ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name != self._name or self._is_asking:
            return None
        self._is_asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._is_asking = False
        loader = None if spec is None else spec.loader
        # A class is the loader of Python's built-in modules, of all of them.
        if hasattr(loader, "exec_module") and not isinstance(loader, type):
            self._watch(loader)
        return spec

    def _watch(self, loader: Any) -> None:
        """Shadows the loader's `exec_module` until the module was loaded.

        The loader stays the one that was found, as others look into modules by it. It may serve
        other modules, too, and may never be asked: some look whether a module is there, no more.
        """
        load = loader.exec_module

        def exec_module(module: types.ModuleType) -> None:
            if module.__name__ != self._name or self._is_done:
                return load(module)
            with self._during():
                load(module)
            if self._is_done:
                return
            self._is_done = True
            vars(loader).pop("exec_module", None)
            with contextlib.suppress(ValueError):
                sys.meta_path.remove(self)
            self._then(module)

        loader.exec_module = exec_module
