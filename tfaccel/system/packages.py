"""Versions of installed packages. Nothing here imports them."""

import importlib.metadata

# The distributions that have a module `tensorflow`.
_TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tf-nightly", "tf-nightly-cpu", "intel-tensorflow")


def version_of(package: str) -> str | None:
    """The version of a distribution; None where it is not installed, or does not say."""
    try:
        return importlib.metadata.version(package) or None
    except (importlib.metadata.PackageNotFoundError, KeyError, ValueError, OSError):
        return None


def tensorflow_version() -> str:
    """TensorFlow's version; empty where it is not known."""
    return next(filter(None, map(version_of, _TENSORFLOW)), "")
