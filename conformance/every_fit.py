"""A pytest plugin that records outcomes and may put an AccelCallback into every fit.

For the test process only: in a process of the user's tfaccel patches no class of Keras's, unless
it runs the process (`tfaccel run`).
"""

import collections
import contextlib
import json
import pathlib
import tempfile

import conftest  # before keras: it imports torch, which must come before TensorFlow
import keras
import pytest


def pytest_addoption(parser):
    group = parser.getgroup("tfaccel")
    group.addoption("--record", metavar="FILE", help="write every test's outcome to FILE (JSON)")
    group.addoption("--accelerate", action="store_true", help="an AccelCallback in every fit")
    group.addoption("--max-tuning-seconds", type=float, default=30.0, help="for each fit")
    group.addoption("--plan", help="names of passes, with commas: for every fit, without tuning")


def pytest_configure(config):
    # conftest.py lies outside pytest's rootdir (Keras's folder), so nobody else registers it.
    config.pluginmanager.register(conftest, "keras-conftest")
    if config.getoption("--record"):
        config.pluginmanager.register(Recorder(config), "tfaccel-recorder")


class Recorder:
    """Collects one outcome a test, and what became of each fit that was accelerated."""

    def __init__(self, config):
        self._file = pathlib.Path(config.getoption("--record"))
        self._outcomes = {}
        self._failures = {}
        self._warnings = []
        self._fits = None
        if config.getoption("--accelerate"):
            plan = config.getoption("--plan")
            self._fits = EveryFit(
                plan.split(",") if plan else "auto", config.getoption("--max-tuning-seconds")
            )
            self._fits.install()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        if self._fits is not None:
            self._fits.test = item.nodeid
        return (yield)

    def pytest_collectreport(self, report):
        if report.failed:
            self._note(report, "error")

    def pytest_runtest_logreport(self, report):
        # A test passes if its call does and neither setup nor teardown fails.
        if report.failed:
            self._note(report, "failed" if report.when == "call" else "error")
        elif report.skipped or report.when == "call":
            self._outcomes.setdefault(report.nodeid, report.outcome)

    def pytest_warning_recorded(self, warning_message, nodeid):
        message = str(warning_message.message)
        if message.startswith("tfaccel"):
            self._warnings.append({"test": nodeid, "message": message})

    def _note(self, report, outcome):
        self._outcomes[report.nodeid] = outcome
        self._failures[report.nodeid] = report.longreprtext

    def pytest_sessionfinish(self):
        if self._fits is not None:
            self._fits.uninstall()
        record = {
            "keras": keras.__version__,
            "outcomes": self._outcomes,
            "failures": self._failures,
            "fits": [] if self._fits is None else self._fits.records,
            "warnings": self._warnings,
        }
        self._file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


class EveryFit:
    """An AccelCallback last among the callbacks of every `fit`.

    Args:
        plan: as AccelCallback's.
        max_tuning_seconds: the budget of each fit; nothing else bounds it.
    """

    def __init__(self, plan, max_tuning_seconds):
        self.records = []
        self.test = ""
        self._plan = plan
        self._max_tuning_seconds = max_tuning_seconds
        self._patches = contextlib.ExitStack()
        # One cache a test: a plan won in one test must not spare another its tuning.
        self._caches: dict[str, tempfile.TemporaryDirectory[str]] = collections.defaultdict(
            tempfile.TemporaryDirectory
        )

    def install(self):
        from tfaccel.launch.every_fit import every_fit  # here: the plain run must not import it

        self._patches.enter_context(every_fit(lambda model, given: Accelerated(self)))

    def uninstall(self):
        self._patches.close()
        for cache in self._caches.values():
            cache.cleanup()

    def callback(self):
        import tfaccel

        return tfaccel.AccelCallback(
            self._plan,
            # These tests hold what float32 makes of a loss, to 1e-6.
            excludes=["mixed_precision"],
            tuning_share=None,
            max_tuning_seconds=self._max_tuning_seconds,
            cache_dir=self._caches[self.test].name,
            verbose=0,
        )


class Accelerated:
    """One fit with its callback, whose record is kept when it has ended."""

    def __init__(self, fits):
        self._fits = fits
        self._test = fits.test
        self.callbacks = [fits.callback()]

    def end(self, raised):
        (accel,) = self.callbacks
        self._fits.records.append({"test": self._test, "raised": raised, **described(accel)})


def described(accel):
    """What became of a fit, as JSON values."""
    report, plan = accel.report, list(accel.plan.names)
    trials = () if report is None else report.trials
    return {
        "plan": plan,
        "chosen": plan if report is None else list(report.plan.names),
        "tuned": len(trials) > 1,
        "note": "" if report is None else report.note,
        "outcomes": collections.Counter(trial.outcome.name for trial in trials),
        "failed": [
            f"{trial.plan}: {trial.reason}" for trial in trials if trial.outcome.name == "FAILED"
        ],
    }
