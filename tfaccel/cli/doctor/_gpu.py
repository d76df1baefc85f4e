"""doctor's look at GPUs: those on the machine, those that TensorFlow sees, and why not."""

import contextlib
import re
from collections.abc import Iterator

from tfaccel.cli.doctor._finding import Finding, Level
from tfaccel.cli.doctor._machine import gib
from tfaccel.cli.doctor._software import tensorflow_package, unmet
from tfaccel.cli.doctor._surroundings import Surroundings
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.units import ratio
from tfaccel.ops.kernels import OpenCLDevice
from tfaccel.system.device import Device
from tfaccel.system.machine import Gpu, NvidiaDriver, nvidia_driver, with_memory

# The oldest driver that runs programs built for a CUDA of that major version:
# https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
# Values of CUDA_VISIBLE_DEVICES that hide every GPU:
# https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
_HIDING = re.compile(r"^\s*(-1\b.*|NoDevFiles)?\s*$")
GROWTH = "TF_FORCE_GPU_ALLOW_GROWTH"
_REINSTALL = (
    "pip uninstall tensorflow tensorflow-cpu; pip install 'tfaccel[gpu]' "
    "(that is tensorflow[and-cuda])"
)


def check_gpus(here: Surroundings) -> Iterator[Finding]:
    """The GPUs, their driver, and whether TensorFlow sees them."""
    seen = with_memory(here.tensorflow.gpus(), here.run)
    driver = nvidia_driver(here.root, here.run)
    for gpu in seen:
        yield _seen(gpu)
    if driver is not None:
        yield _driver(driver, here)
    if not seen:
        yield _unseen(driver, here) if driver else Finding("GPU", "no NVIDIA GPU on this machine")


def _seen(gpu: Gpu) -> Finding:
    capability = gpu.compute_capability
    said = [gpu.name, gib(gpu.memory_bytes) if gpu.memory_bytes else ""]
    said += [f"compute capability {capability[0]}.{capability[1]}" if capability else ""]
    text = ", ".join(part for part in said if part)
    fast = Device("GPU", gpu.name, compute_capability=capability).fast_dtype
    if fast is None:
        return Finding(
            "GPU",
            f"{text}: no Tensor Cores, or none that are known of",
            Level.NOTE,
            "Train in float32, its fastest dtype; tfaccel doesn't try mixed_precision there.",
        )
    return Finding("GPU", f"{text}: Tensor Cores for {fast}")


def _driver(driver: NvidiaDriver, here: Surroundings) -> Finding:
    build = here.tensorflow.build()
    cuda = str(build.get("cuda_version", ""))
    least = _OLDEST_DRIVER.get(_major(cuda) or 0) if build.get("is_cuda_build") else None
    version = driver.version or "of unknown version"
    if least and driver.version and (_major(driver.version) or least) < least:
        return Finding(
            "driver",
            f"NVIDIA's driver {version} is too old for CUDA {cuda}, which TensorFlow is built for",
            Level.PROBLEM,
            f"Install a driver of version {least} or newer.",
        )
    return Finding("driver", f"NVIDIA's driver {version}")


def _major(version: str) -> int | None:
    found = re.match(r"\d+", version)
    return int(found[0]) if found else None


def _unseen(driver: NvidiaDriver, here: Surroundings) -> Finding:
    """Why TensorFlow doesn't see a GPU that is there."""
    names = ", ".join(gpu.name for gpu in driver.gpus)
    chosen = here.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None and _HIDING.match(chosen):
        said = f"{names}: hidden by CUDA_VISIBLE_DEVICES={chosen!r}"
        return Finding("GPU", said, Level.NOTE, "Unset CUDA_VISIBLE_DEVICES to use it.")
    if not driver.reachable:
        said = f"{names}: the machine has it, but this process has no device files for it"
        remedy = "Start the container with GPUs (docker run --gpus all)."
        return Finding("GPU", said, Level.WARNING, remedy)
    said = f"{names}: on this machine, and TensorFlow does not see it"
    if not here.tensorflow.build().get("is_cuda_build"):
        said += ", as it is built without CUDA"
        return Finding("GPU", said, Level.PROBLEM, _REINSTALL)
    wrong = unmet(here.packages, tensorflow_package(here.packages), "and-cuda")
    if wrong:
        said += f"; of its CUDA libraries: {'; '.join(wrong)}"
        remedy = "pip install --upgrade 'tensorflow[and-cuda]', unless CUDA came another way"
        return Finding("GPU", said, Level.PROBLEM, remedy)
    return Finding(
        "GPU",
        said,
        Level.PROBLEM,
        "TF_CPP_MIN_LOG_LEVEL=0 python -c 'import tensorflow as tf; "
        'tf.config.list_physical_devices("GPU")\' names the library that could not be loaded.',
    )


def check_cuda(here: Surroundings) -> Iterator[Finding]:
    """What TensorFlow was built for."""
    build = here.tensorflow.build()
    if build.get("is_rocm_build"):
        yield Finding("CUDA", "TensorFlow is built for ROCm (AMD)")
    elif build.get("is_cuda_build"):
        cuda, cudnn = (build.get(key, "?") for key in ("cuda_version", "cudnn_version"))
        yield Finding("CUDA", f"TensorFlow is built for CUDA {cuda} and cuDNN {cudnn}")
        yield from _mixed_libraries(here)
    else:
        yield Finding("CUDA", "TensorFlow is built without CUDA, for CPUs alone")


def _mixed_libraries(here: Surroundings) -> Iterator[Finding]:
    """CUDA libraries of another version than TensorFlow wants, where it uses them."""
    wrong = unmet(here.packages, tensorflow_package(here.packages), "and-cuda", missing=False)
    if wrong and here.tensorflow.gpus():
        yield Finding(
            "CUDA",
            "; ".join(wrong),
            Level.WARNING,
            "pip install --upgrade 'tensorflow[and-cuda]'; other frameworks that bring CUDA "
            "belong in an environment of their own.",
        )


def check_memory_growth(here: Surroundings) -> Iterator[Finding]:
    """Whether TensorFlow takes all of a GPU's memory as it starts."""
    if not here.tensorflow.gpus():
        return
    # TensorFlow knows these two spellings only, and they win over what a program sets:
    # https://www.tensorflow.org/guide/gpu#limiting_gpu_memory_growth
    variable = here.environ.get(GROWTH)
    if variable == "true" or (variable != "false" and here.tensorflow.memory_grows()):
        yield Finding("GPU memory", "taken as it is needed")
    else:
        yield Finding(
            "GPU memory",
            "TensorFlow takes nearly all of it as it starts",
            Level.NOTE,
            f"If others use the GPU too: {GROWTH}=true, or "
            "tf.config.experimental.set_memory_growth(gpu, True) for each GPU.",
        )


def check_opencl(here: Surroundings) -> Iterator[Finding]:
    """The OpenCL platforms and their devices, where the extra is installed."""
    if here.packages.version("pyopencl") is None:
        return
    try:
        devices = here.opencl_devices()
    except RuntimeError as error:
        yield Finding("OpenCL", "no device", Level.NOTE, str(error))
        return
    for device in devices:
        said = f"{device.name}: {device.type}, {device.compute_units} compute units"
        shared = ", shared with the CPU" if device.shares_memory else ""
        memory = f"{gib(device.memory_bytes)}{shared}"
        yield Finding("OpenCL", f"{said}, {memory}; {device.platform}, {device.driver}")


def check_opencl_times(here: Surroundings) -> Iterator[Finding]:
    """What was measured on the OpenCL device that is used. TensorFlow starts its own devices."""
    if here.packages.version("pyopencl") is None:
        return
    with contextlib.suppress(RuntimeError):  # there is none, as `check_opencl` says
        device = here.opencl_devices()[0]
        yield Finding("OpenCL", f"{device.name}: {_measured_on(device, here)}")


def _measured_on(device: OpenCLDevice, here: Surroundings) -> str:
    variant = here.opencl_variant(device)
    way = f", computed by {variant}" if variant else ""
    timed = [
        (candidate.speedup.median, candidate.verdict is Outcome.FASTER, str(ranking.spec))
        for ranking in here.rankings(here.cache_directory)
        for candidate in ranking.candidates
        if candidate.kernel == "opencl" and candidate.speedup is not None
    ]
    if not timed:
        return f"no product was measured against TensorFlow's kernels yet{way}"
    (worst, _, _), (best, _, call) = min(timed), max(timed)
    won = sum(faster for _, faster, _ in timed)
    range_ = f"{ratio(worst)} to {ratio(best)}, best {call}"
    return f"of {len(timed)} products measured{way}, {won} faster than TensorFlow's ({range_})"
