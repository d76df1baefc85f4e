"""Versions of installed packages. Nothing here imports them."""

import importlib

# The distributions that have a module `tensorflow`.
_TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu", "intel-tensorflow")


def version_of(package: str) -> str | None:
    """The version of a distribution; None where it is not installed, or does not say."""
    # Here and not at the top, as `tfaccel run` need not wait for it.
    metadata = importlib.import_module("importlib.metadata")
    try:
        return metadata.version(package) or None
    except (ImportError, KeyError, ValueError, OSError):  # PackageNotFoundError is the first
        return None


def tensorflow_version() -> str:
    """TensorFlow's version; empty where it is not known."""
    return next(filter(None, map(version_of, _TENSORFLOW)), "")
