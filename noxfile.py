"""The smoke part of the tests on every Python, and on the oldest and newest TensorFlow and Keras.

    nox                          # all that this machine has Pythons for
    nox --session newest-3.12    # one of them; `nox --list` names all
    nox -- -k plan               # words for pytest, in place of the smoke part
    nox --session nightly        # Keras as it will be: names of private API that have moved

`nox` comes with the extra dev. Sessions need the network, but for `nox --reuse-existing-virtualenvs
--no-install`. Each tells by `tfaccel doctor` what its versions lack.
"""

import nox

nox.needs_version = ">=2024.4.15"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["oldest", "newest"]

NEWEST = ("3.10", "3.11", "3.12", "3.13")
# TensorFlow 2.16 has wheels for these (constraints-oldest.txt).
OLDEST = ("3.10", "3.11", "3.12")
# What a fit, a plan, a trial, a validation, an interruption and a cache need, and the private names
# that are looked up for it.
SMOKE = (
    "tests/test_public_names.py",
    "tests/test_lacking.py",
    "tests/test_plan.py",
    "tests/test_cache.py",
    "tests/test_validation.py",
    "tests/test_state.py",
    "tests/interrupted",
)


def smoke(session: nox.Session) -> None:
    """The tests, and what these versions lack."""
    session.run("python", "-m", "tfaccel", "doctor", success_codes=[0, 1])
    words = session.posargs or SMOKE
    environ = {"TF_CPP_MIN_LOG_LEVEL": "2"}
    session.run("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *words, env=environ)


@nox.session(python=NEWEST)
def newest(session: nox.Session) -> None:
    """The newest TensorFlow and Keras that pip finds for this Python."""
    session.install("--editable", ".[cpu,test]")
    smoke(session)


@nox.session(python=OLDEST)
def oldest(session: nox.Session) -> None:
    """The oldest that tfaccel promises to work with."""
    session.install("--editable", ".[cpu,test]", "--constraint", "constraints-oldest.txt")
    smoke(session)


@nox.session(python="3.12")
def nightly(session: nox.Session) -> None:
    """Keras's nightly build, in place of the one that TensorFlow asks for."""
    session.install("--editable", ".[cpu,test]")
    session.run("python", "-m", "pip", "uninstall", "--yes", "--quiet", "keras")
    session.install("--pre", "keras-nightly")
    smoke(session)
