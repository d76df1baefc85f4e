"""doctor's look at the installation: versions, packages, oneDNN, extras, the plan cache."""

import os
import platform
from collections.abc import Iterator

from packaging.requirements import Requirement
from packaging.version import Version

from tfaccel.cli.doctor._finding import Finding, Level
from tfaccel.cli.doctor._surroundings import Packages, Surroundings, existing
from tfaccel.compat.lacking import EVERYTHING

# Packages that bring the module `tensorflow`, each overwriting the other's files.
TENSORFLOWS = (
    *("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-rocm"),
    *("intel-tensorflow", "tf-nightly", "tf-nightly-cpu"),
)
# The same as in setup.cfg and constraints-oldest.txt.
_OLDEST = {"Python": "3.10", "TensorFlow": "2.16", "Keras": "3.10"}
# Extras of setup.cfg, what they bring, and what for.
EXTRAS = (
    ("report", "matplotlib", "the plots of `tfaccel report`"),
    ("report", "jinja2", "its page"),
    ("openvino", "openvino", "faster predictions by `tfaccel.accelerate`"),
    ("onnx", "onnxruntime", "the same"),
    ("opencl", "pyopencl", "products on GPUs that TensorFlow can't use"),
    ("tensorboard", "tensorboard", "TensorBoard scalars by ProfilerCallback"),
    ("examples", "scikit-learn", "the examples' digits"),
)
_ONEDNN = "TF_ENABLE_ONEDNN_OPTS"
# https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html
_ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")


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


def check_versions(here: Surroundings) -> Iterator[Finding]:
    """Python, TensorFlow, Keras and NumPy against what tfaccel needs."""
    versions = here.tensorflow.versions()
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    old = [name for name, least in _OLDEST.items() if Version(versions[name]) < Version(least)]
    if not old:
        yield Finding("versions", listed)
    for name in old:
        least = _OLDEST[name]
        remedy = (
            f"Make an environment with Python {least} or newer."
            if name == "Python"
            else f"pip install --upgrade '{name.lower()}>={least}'"
        )
        said = f"{listed}; tfaccel needs {name} {least} or newer"
        yield Finding("versions", said, Level.PROBLEM, remedy)


def check_private_api(here: Surroundings) -> Iterator[Finding]:
    """What these versions of TensorFlow and Keras lack of what has no public name."""
    for name, use in here.tensorflow.lacks().items():
        level = Level.PROBLEM if use == EVERYTHING else Level.NOTE
        remedy = "Use a tfaccel release that knows these versions, or older versions of them."
        yield Finding("versions", f"{name} is not there, which {use} needs", level, remedy)


def check_packages(here: Surroundings) -> Iterator[Finding]:
    """One TensorFlow, and with it what it was made for."""
    found = {name: v for name in TENSORFLOWS if (v := here.packages.version(name))}
    if len(found) > 1:
        same = len(set(found.values())) == 1
        both = " and ".join(f"{name} {version}" for name, version in found.items())
        yield Finding(
            "packages",
            f"{both} are installed over each other",
            Level.WARNING if same else Level.PROBLEM,
            f"pip uninstall {' '.join(found)}; then install one of them",
        )
    names = (tensorflow_package(here.packages), "keras", "tfaccel")
    wrong = [phrase for name in names for phrase in unmet(here.packages, name)]
    for phrase in wrong:
        yield Finding("packages", phrase, Level.WARNING, "pip check; then install what it names")
    if not wrong and len(found) == 1:
        ((name, version),) = found.items()
        yield Finding("packages", f"{name} {version}, with all that it requires")
    if not found:
        yield Finding(
            "packages",
            "pip does not know where TensorFlow comes from",
            Level.NOTE,
            "Nothing, if you or your system built it.",
        )


def check_keras(here: Surroundings) -> Iterator[Finding]:
    """Keras's settings."""
    config = here.tensorflow.keras_config()
    backend, floatx, layout = (config[k] for k in ("backend", "floatx", "image_data_format"))
    if backend != "tensorflow":
        said, remedy = f"Keras runs on {backend}", "Set KERAS_BACKEND=tensorflow."
        yield Finding("Keras", said, Level.PROBLEM, remedy)
    else:
        yield Finding("Keras", "runs on TensorFlow")
    if here.environ.get("TF_USE_LEGACY_KERAS", "").lower() in ("1", "true"):
        said = "TF_USE_LEGACY_KERAS makes tf.keras Keras 2, whose models tfaccel can't train"
        remedy = "Unset it, or use `import keras` instead of `tf.keras`."
        yield Finding("Keras", said, Level.WARNING, remedy)
    if floatx != "float32":
        said = f"floatx is {floatx}, which every layer without a dtype takes"
        remedy = "keras.config.set_floatx('float32'), or floatx in ~/.keras/keras.json"
        yield Finding("Keras", said, Level.WARNING, remedy)
    if layout == "channels_first" and not here.tensorflow.gpus():
        said = (
            "image_data_format is channels_first, which costs transposes on a CPU, or fails there"
        )
        remedy = "image_data_format in ~/.keras/keras.json: channels_last"
        yield Finding("Keras", said, Level.WARNING, remedy)


def check_onednn(here: Surroundings) -> Iterator[Finding]:
    """oneDNN's kernels, and limits set on them."""
    is_on, variable = here.tensorflow.onednn(), here.environ.get(_ONEDNN)
    if is_on is None:
        remedy = "TF_CPP_MIN_LOG_LEVEL=0 python -c 'import tensorflow' says so where it is on."
        yield Finding("oneDNN", "TensorFlow doesn't tell whether it is on", Level.NOTE, remedy)
    elif is_on or platform.system() == "Darwin":
        yield Finding("oneDNN", "on" if is_on else "not in TensorFlow for macOS")
    elif variable is not None:
        said = f"turned off by {_ONEDNN}={variable}"
        yield Finding("oneDNN", said, Level.WARNING, f"Unset it, or set {_ONEDNN}=1.")
    else:
        # tensorflow/core/util/port.cc: on by default with VNNI, BF16 or AMX.
        said = "off, as TensorFlow has it for CPUs without AVX-VNNI, AVX512-BF16 or AMX"
        remedy = f"Try {_ONEDNN}=1, and keep it if a step gets faster."
        yield Finding("oneDNN", said, Level.NOTE, remedy)
    for name in _ISA_LIMITS:
        if here.environ.get(name, "ALL").upper() not in ("ALL", "DEFAULT"):
            said = f"{name}={here.environ[name]} keeps it from newer instructions"
            yield Finding("oneDNN", said, Level.WARNING, f"Unset {name}.")


def check_extras(here: Surroundings) -> Iterator[Finding]:
    """What is there of the optional packages."""
    versions = {package: here.packages.version(package) for _, package, _ in EXTRAS}
    found = [f"{package} {version}" for package, version in versions.items() if version]
    if found:
        yield Finding("extras", ", ".join(found))
    absent = [row for row in EXTRAS if not versions[row[1]]]
    extras = dict.fromkeys(extra for extra, _, _ in absent)
    if absent:
        yield Finding(
            "extras",
            "not installed: " + ", ".join(f"{package} ({use})" for _, package, use in absent),
            Level.NOTE,
            f"pip install 'tfaccel[{','.join(extras)}]' if you want them",
        )


def check_cache(here: Surroundings) -> Iterator[Finding]:
    """Where plans are kept, and whether they can be."""
    folder = here.cache_directory
    place = existing(folder)
    remedy = "Set TFACCEL_CACHE_DIR to a folder that you may write to."
    if not place.is_dir():
        said = f"{place} is a file: no plans can be kept in {folder}"
        yield Finding("plan cache", said, Level.WARNING, remedy)
    elif not os.access(place, os.W_OK | os.X_OK):
        said = f"no plans can be written to {folder}: every training tunes anew"
        yield Finding("plan cache", said, Level.WARNING, remedy)
    else:
        kept = len(list(folder.glob("*.json")))
        yield Finding("plan cache", f"{folder}, with {kept} plans" if kept else f"{folder}, empty")
