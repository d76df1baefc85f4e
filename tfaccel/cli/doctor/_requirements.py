"""Whether installed packages are those that others say they require."""

from packaging.requirements import Requirement

from tfaccel.cli.doctor._surroundings import Packages

# Packages that bring the module `tensorflow`, each overwriting the other's files.
TENSORFLOWS = (
    *("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-rocm"),
    *("intel-tensorflow", "tf-nightly", "tf-nightly-cpu"),
)


def tensorflow_package(packages: Packages) -> str:
    """The package that TensorFlow was installed from."""
    found = (name for name in TENSORFLOWS if packages.version(name))
    return next(found, TENSORFLOWS[0])


def unmet(
    packages: Packages, package: str, extra: str = "", missing: bool = True
) -> tuple[str, ...]:
    """Which of a package's requirements are not met, a phrase each.

    Args:
        packages: what is installed.
        package: whose requirements.
        extra: an extra whose own requirements are meant, instead of the package's.
        missing: whether packages that aren't installed count.

    Source: https://packaging.python.org/en/latest/specifications/dependency-specifiers
    """
    phrases = []
    for text in packages.requires(package):
        wanted = Requirement(text)
        if not _applies(wanted, extra):
            continue
        version, bounds = packages.version(wanted.name), f"{wanted.name}{wanted.specifier}"
        if version is None:
            if missing:
                phrases.append(f"{package} wants {bounds}, which is not installed")
        elif not wanted.specifier.contains(version, prereleases=True):
            phrases.append(f"{package} wants {bounds}, and {version} is installed")
    return tuple(phrases)


def _applies(wanted: Requirement, extra: str) -> bool:
    if wanted.marker is None:
        return not extra
    always = wanted.marker.evaluate({"extra": ""})
    return always if not extra else not always and wanted.marker.evaluate({"extra": extra})
