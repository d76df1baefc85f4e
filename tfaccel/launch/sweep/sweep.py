"""A whole sweep: what there is to try, the turns, and what is kept."""

import os
import sys
import time
from collections.abc import Iterator, Mapping

from tfaccel.launch import environment
from tfaccel.launch.program import Program
from tfaccel.launch.sweep import kept
from tfaccel.launch.sweep.child import Children
from tfaccel.launch.sweep.race import Run, race
from tfaccel.launch.sweep.race import TurnError as TurnError
from tfaccel.launch.sweep.result import Swept
from tfaccel.launch.sweep.settings import ZENDNN_PACKAGE, Factor, Setting, factors, xla_factors
from tfaccel.measure.units import milliseconds
from tfaccel.system.packages import version_of


def sweep(program: Program, max_seconds: float) -> Swept:
    """Measures which surroundings make a program's first steps fastest, and keeps them.

    Args:
        program: what to run.
        max_seconds: what all turns may take.

    Raises:
        TurnError: the steps of the program as it is could not be timed.
    """
    preset = environment.additions({}, os.environ)
    environ = {**os.environ, **preset}
    children = Children(program, environ)
    found = race(
        factors_of(children, environ),
        _told(children),
        clock=time.monotonic,
        max_seconds=max_seconds,
    )
    try:
        file = str(kept.keep(program, found.best.environ))
    except OSError:
        file = ""
    return Swept(found, file)


def factors_of(children: Children, environ: Mapping[str, str]) -> Iterator[Factor]:
    """What to try; XLA's flags not where the turns before have told that XLA compiles nothing."""
    yield from factors(
        os.environ,
        is_onednn_on=environment.takes_onednn(environ),
        has_zendnn=version_of(ZENDNN_PACKAGE) is not None,
    )
    if children.compiles is not False:
        yield from xla_factors(os.environ)


def _told(run: Run) -> Run:
    """The same, which tells on standard error how far it is."""

    def turn(setting: Setting, seconds: float) -> float:
        found = run(setting, seconds)
        print(f"{setting.name}: {milliseconds(found)} a step", file=sys.stderr, flush=True)
        return found

    return turn
