"""The way from the user's words to the user's program."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import sys

from tfaccel.launch import environment
from tfaccel.launch.imports import after_import
from tfaccel.launch.program import NoProgramError, Program
from tfaccel.launch.spawned import first_in_workers
from tfaccel.launch.workers.cluster import is_first, names_several
from tfaccel.system.cache_place import sweeps_place
from tfaccel.system.garbage import resting_collector

TYPE_CHECKING = False  # as in `typing`, which a program need not wait for
if TYPE_CHECKING:
    import types
    from typing import Any

EXIT_NO_PROGRAM = 2
_NO_FIT = (
    "tfaccel: there was no `fit` in this process, so nothing was accelerated in it; "
    "`tfaccel.accelerate_step` is for training loops without one."
)


class Options:
    """What is asked of the fits. No dataclass, whose module takes longer to load than this one.

    Attributes:
        tuning: as AccelCallback's.
        verbose: whether AccelCallback tells at each fit what it chose.
        profile: the folder for ProfilerCallback; None for none.
        measure_into: a file for the time of the first steps, after which the process ends.
        process: the id of the program's first process, which is this one; it may begin others.
        backup_dir: the folder in which fits are kept for a restart; None for none.
        save_freq: steps between saves; None for the ends of epochs alone.
        on_batch: whether `train_on_batch` and its like are accelerated, too.
        launched: whether this process is a worker that the launcher started.
    """

    def __init__(
        self,
        *,
        tuning: str | None = None,
        verbose: bool = False,
        profile: str | None = None,
        measure_into: str | None = None,
        backup_dir: str | None = None,
        save_freq: int | None = None,
        on_batch: bool = False,
        launched: bool = False,
    ):
        self.tuning = tuning
        self.verbose = verbose
        self.profile = profile
        self.measure_into = measure_into
        self.process = os.getpid()
        self.backup_dir = backup_dir
        self.save_freq = save_freq
        self.on_batch = on_batch
        self.launched = launched


# Watches of processes that the program has begun: nothing else holds them.
_watches: list[Watch] = []


class Watch:
    """Adds the callbacks to each fit, and tells at the end what became of them.

    Args:
        options: what is asked of the fits.
        added: what was set in the environment.
    """

    def __init__(self, options: Options, added: dict[str, str]):
        self._options = options
        self._added = added
        self._fits: Any = None
        self._has_keras = False
        self.has_run = False  # to its end, and not to an exception or a status other than 0
        # Holds the patch: a context manager that nobody holds would undo it.
        self.patches = contextlib.ExitStack()
        self._process = os.getpid()

    def begin(self, keras: types.ModuleType) -> None:
        """Keras has been imported."""
        self._has_keras = True
        try:
            every_fit = importlib.import_module("tfaccel.launch.every_fit")
            self.patches.enter_context(every_fit.every_fit(self._begin_fit))
            if self._options.on_batch and self._options.measure_into is None:
                every = importlib.import_module("tfaccel.launch.every_batch")
                self.patches.enter_context(every.every_batch(self._begin_batches))
        except Exception as error:  # in the middle of the user's `import keras`
            print(f"tfaccel: fits are left as they are: {error}", file=sys.stderr)

    def _begin_fit(self, model: Any, given: list[Any]) -> Any:
        return self._found_fits().begin(model, given)

    def _begin_batches(self, model: Any) -> Any:
        return self._found_fits().begin_batches(model)

    def _found_fits(self) -> Any:
        if self._fits is None:
            measured = self._options.measure_into is not None
            name = "tfaccel.launch.sweep.steps" if measured else "tfaccel.launch.fits"
            self._fits = importlib.import_module(name).fits(self._options)
        return self._fits

    def end(self) -> None:
        """The program has ended: prints the closing table, or that there was nothing to do."""
        # A forked process says nothing, and of several workers the first speaks for all.
        if os.getpid() != self._process or not is_first(os.environ):
            return
        if self._fits is not None:
            try:
                self._fits.show(self._added)
            except Exception as error:
                print(f"tfaccel: there is no closing table: {error}", file=sys.stderr)
        elif self._has_keras and self.has_run:
            print(_NO_FIT, file=sys.stderr)


def start(program: Program, options: Options) -> int:
    """Runs the program with its fits accelerated; what it raises passes through.

    Args:
        program: the script or module.
        options: what is asked of the fits.

    Returns:
        The exit status: 0, or 2 where there is no such program.
    """
    added: dict[str, str] = {}
    if options.measure_into is None:  # a sweep has set all that is to be set
        # What a sweep kept is for one process with the whole machine.
        share = options.launched and names_several(os.environ)
        found = {} if share else _kept(program)
        added = environment.additions(found, os.environ)
        environment.apply(added)
    watch = Watch(options, added)
    _await_imports(watch)
    if options.measure_into is None:
        first_in_workers(begin_worker, options)
    # After the program's threads, and its own handlers, which come first.
    atexit.register(watch.end)
    try:
        program.run()
        watch.has_run = True
    except SystemExit as ended:
        watch.has_run = ended.code is None or (isinstance(ended.code, int) and ended.code == 0)
        raise
    except NoProgramError as error:
        print(f"tfaccel run: {error}", file=sys.stderr)
        return EXIT_NO_PROGRAM
    return 0


def _await_imports(watch: Watch) -> None:
    """Has the watch begin with Keras; meanwhile nobody need look for garbage."""
    after_import("tensorflow", lambda _: None, resting_collector)
    after_import("keras", watch.begin, resting_collector)


def _kept(program: Program) -> dict[str, str]:
    """What a sweep kept for the program."""
    if not os.path.isdir(sweeps_place()):  # nobody has swept anything here
        return {}
    found: dict[str, str] = importlib.import_module("tfaccel.launch.sweep.kept").environ(program)
    return found


def begin_worker(options: Options) -> None:
    """Does the same in a process that the program has begun; no closing table has its fits."""
    watch = Watch(options, {})
    _await_imports(watch)
    _watches.append(watch)
    first_in_workers(begin_worker, options)
