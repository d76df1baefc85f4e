"""Running a script or a module as `python` would run it, in this process.

What `runpy` offers for this puts the module away again when its code has run, so that threads,
handlers at exit and pickled functions miss it; and it leaves its frames in tracebacks.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib.machinery
import importlib.util
import os
import sys
import types

TYPE_CHECKING = False  # as in `typing`, which a program need not wait for
if TYPE_CHECKING:
    from typing import Any

_MAIN = "__main__"
_FRAMES_LEFT_OUT = (__file__, importlib.util.__file__, "<frozen importlib")


class NoProgramError(Exception):
    """There is no such program; the message says what was looked for."""


class Program:
    """What the user's words name. No dataclass, whose module takes longer to load than this one.

    Attributes:
        name: a script (a file, or a folder or zip file with a `__main__.py`), or a module.
        arguments: the words after it, for `sys.argv`.
        is_module: whether the name is a module's, as after `python -m`.
    """

    def __init__(self, name: str, arguments: tuple[str, ...] = (), is_module: bool = False):
        self.name = name
        self.arguments = arguments
        self.is_module = is_module

    def check(self) -> None:
        """NoProgramError where a script is not there; a module is looked for by `run` alone.

        Finding a module imports the packages around it, which is the program's work already.
        """
        if not self.is_module and not os.path.exists(self.name):
            raise NoProgramError(f"there is no file {self.name}")

    def run(self) -> None:
        """Runs the program as `__main__`, with its own `sys.argv` and `sys.path[0]`.

        Raises:
            NoProgramError: there is no such module, or the folder has no `__main__.py`.
            BaseException: what the program raised. It was shown as `python` shows it, and
                `sys.excepthook` says nothing more: where nobody catches it, Python ends as usual.
        """
        main = types.ModuleType(_MAIN)
        vars(main)["__builtins__"] = builtins
        if hasattr(sys.modules[_MAIN], "__annotations__"):  # as this Python begins a `__main__`
            main.__annotations__ = {}
        try:
            code = self._module(main) if self.is_module else self._script(main)
            sys.modules[_MAIN] = main
            exec(code, vars(main))
            return
        except (SystemExit, NoProgramError):
            raise
        except BaseException as error:
            error.__traceback__ = _without_ours(error.__traceback__)
            failed = error
        _show(failed)
        sys.excepthook = _silent
        raise failed

    def _script(self, main: types.ModuleType) -> types.CodeType:
        sys.argv[:] = [self.name, *self.arguments]
        path = os.path.abspath(self.name)
        if _holds_modules(path):  # a folder, or a zip file
            _put_first_on_path(path, always=True)
            spec = importlib.machinery.PathFinder.find_spec(_MAIN, [path])
            return _described(main, spec, f"there is no {_MAIN}.py in {self.name}")
        _put_first_on_path(os.path.dirname(os.path.realpath(path)))
        loader: Any
        if path.endswith(".pyc"):
            loader = importlib.machinery.SourcelessFileLoader(_MAIN, path)
            code = loader.get_code(_MAIN)
        else:
            loader = importlib.machinery.SourceFileLoader(_MAIN, path)
            code = loader.source_to_code(loader.get_data(path), path)
        # `python` runs a script without a spec: multiprocessing goes by that.
        vars(main).update(__file__=path, __cached__=None, __loader__=loader)
        return code

    def _module(self, main: types.ModuleType) -> types.CodeType:
        # As `python -m` has it while it looks for the module.
        sys.argv[:] = ["-m", *self.arguments]
        _put_first_on_path(os.getcwd())
        missing = f"No module named {self.name}"
        spec = _found(self.name, missing)
        if spec is not None and spec.submodule_search_locations is not None:
            missing = f"{self.name} is a package without a {_MAIN}.py"
            spec = _found(f"{self.name}.{_MAIN}", missing)
        code = _described(main, spec, missing)
        sys.argv[0] = main.__file__ or self.name
        return code


def _holds_modules(path: str) -> bool:
    """Whether modules are looked for in there, as `pkgutil.get_importer` would tell."""
    for hook in sys.path_hooks:
        try:
            hook(path)
            return True
        except ImportError:
            continue
    return False


def _found(name: str, missing: str) -> importlib.machinery.ModuleSpec | None:
    """The module's spec; NoProgramError where a package around it is not there."""
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError as error:
        # One of the program's own imports may be missing, too, which is the program's error.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise NoProgramError(missing) from error
        raise
    except ValueError as error:  # `a..b`, or a module without a spec
        raise NoProgramError(missing) from error


def _described(
    main: types.ModuleType, spec: importlib.machinery.ModuleSpec | None, missing: str
) -> types.CodeType:
    """Gives `__main__` what it has under `python -m`, and gives its code."""
    loader: Any = None if spec is None else spec.loader
    code = loader.get_code(spec.name) if spec and hasattr(loader, "get_code") else None
    if spec is None or code is None:
        raise NoProgramError(missing)
    vars(main).update(
        __spec__=spec,
        __loader__=loader,
        __package__=spec.parent,
        __file__=spec.origin,
        __cached__=spec.cached,
    )
    return code


def _put_first_on_path(folder: str, always: bool = False) -> None:
    """Replaces what `tfaccel` itself was found by, which `python` with this program would not have.

    Under `python -I` and `-P` neither is on the path: then there is nothing to replace.
    """
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        sys.path[:1] = [folder]
    elif always:
        sys.path.insert(0, folder)


def _without_ours(trace: types.TracebackType | None) -> types.TracebackType | None:
    """A traceback from the program's first frame on; None where the program did not begin."""
    while trace is not None:
        if not trace.tb_frame.f_code.co_filename.startswith(_FRAMES_LEFT_OUT):
            return trace
        trace = trace.tb_next
    return None


def _show(error: BaseException) -> None:
    """Says what ended the program, as `python` does: by a hook, which may fail or be missing."""
    if not hasattr(sys, "excepthook"):
        _write("sys.excepthook is missing\n")
        sys.__excepthook__(type(error), error, error.__traceback__)
        return
    try:
        sys.excepthook(type(error), error, error.__traceback__)
    except SystemExit:
        raise
    except BaseException as another:
        another.__traceback__ = another.__traceback__ and another.__traceback__.tb_next
        _write("Error in sys.excepthook:\n")
        sys.__excepthook__(type(another), another, another.__traceback__)
        _write("\nOriginal exception was:\n")
        sys.__excepthook__(type(error), error, error.__traceback__)


def _write(words: str) -> None:
    with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or none
        sys.stderr.write(words)


def _silent(*_: Any) -> None:
    """Stands in for `sys.excepthook` when all is said."""
