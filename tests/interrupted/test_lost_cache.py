"""A cache folder that vanishes, turns into a file or read-only, or fills up, in the midst of a fit.

The training is Keras's, with one warning at most.
"""

import contextlib
import errno
import os
import pathlib
import shutil

import numpy as np
import pytest
from crossed import crossed
from fault_points import doing
from fault_trainings import TRAININGS, stock

from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.training.choose import PlanChooser
from tfaccel.training.course import Course

pytestmark = pytest.mark.usefixtures("unoptimised")


def vanishes(folder, patched):
    shutil.rmtree(folder, ignore_errors=True)


def becomes_a_file(folder, patched):
    vanishes(folder, patched)
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text("", encoding="utf-8")


def _refused(folder, patched, number, writes_some=False):
    """From now on no file in the folder is opened for writing, or none takes all of its text."""
    opened = os.open

    def refusing(path, flags, *more, **given):
        if flags & (os.O_WRONLY | os.O_RDWR) and pathlib.Path(path).is_relative_to(folder):
            if writes_some:
                os.close(opened(path, flags, *more, **given))
            raise OSError(number, os.strerror(number), os.fspath(path))
        return opened(path, flags, *more, **given)

    patched.setattr(os, "open", refusing)


def turns_read_only(folder, patched):
    _refused(folder, patched, errno.EROFS)


def fills_up(folder, patched):
    _refused(folder, patched, errno.ENOSPC, writes_some=True)


MISHAPS = [vanishes, becomes_a_file, turns_read_only, fills_up]
MOMENTS = {
    "before the choice": PlanChooser.choose,
    "before it is kept": PlanCache.save,
    "when it is read": PlanCache.load,
    "at the end": Course.finish,
}


def trained(name, mishap, moment, monkeypatch):
    """The training, in the midst of which the folder is lost; and whether it came to that."""
    happened = []
    with monkeypatch.context() as patched:
        training = TRAININGS[name]
        folders, made = [], type(training).callback

        def noting(self, folder):
            folders.append(folder / "cache")
            return made(self, folder / "cache")

        patched.setattr(type(training), "callback", noting)

        @contextlib.contextmanager
        def inside():
            code = MOMENTS[moment].__code__
            with doing(code, lambda: mishap(folders[-1], patched)) as found:
                yield
            happened.extend(found)

        return training.run(inside=inside), bool(happened)


@crossed(
    ("mishap", "moment", "name"),
    {mishap.__name__: mishap for mishap in MISHAPS},
    {moment: moment for moment in MOMENTS},
    {name: name for name in ("trials", "raced", "cached")},
)
def test_a_cache_that_is_lost_in_the_midst(mishap, moment, name, monkeypatch):
    found, happened = trained(name, mishap, moment, monkeypatch)
    assert happened or (name, moment) == ("cached", "before it is kept")
    assert found.error is None and len(found.warnings) <= 1
    assert not found.left
    assert found.history == stock(name).history
    for ours, keras_s in zip(found.state, stock(name).state, strict=True):
        np.testing.assert_array_equal(ours, keras_s)
