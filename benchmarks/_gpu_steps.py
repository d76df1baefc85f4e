"""The steps of benchmarks/gpu_day.py, and how one runs."""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parents[1]
_NETWORKS = "benchmarks/training.py --sizes gpu --static --blocks 6 --resume"


@dataclasses.dataclass(frozen=True)
class Step:
    """A part of the day.

    Attributes:
        command: what Python runs; `{output}` stands for the folder of results.
        minutes: after which it is ended.
        small: what is added, or stands for it, where all is to be tiny.
        environment: set for it.
    """

    command: str
    minutes: float
    small: str
    environment: tuple[tuple[str, str], ...] = ()


def _network(model: str, minutes: float, seconds: int, more: str = "") -> Step:
    command = f"{_NETWORKS} --models {model} --max_tuning_seconds {seconds} {more}"
    small = command.replace("--sizes gpu", "--sizes cpu")
    tiny = "--models mlp --max_tuning_seconds 3 --block_seconds 0.01"
    return Step(f"{command} --output {{output}}", minutes, f"{small} {tiny} --output {{output}}")


_TESTS = "-m pytest -q -p no:cacheprovider -m gpu tests/gpu"
_BENCH = "-m tfaccel bench resnet8 --plans auto --devices"
STEPS: dict[str, Step] = {
    "loading": Step(
        '-c "import tensorflow as tf; print(tf.sysconfig.get_build_info()); '
        "print(tf.config.list_physical_devices('GPU'))\"",
        1,
        "-c \"import tensorflow as tf; print(tf.config.list_physical_devices('GPU'))\"",
        # Says which library could not be loaded.
        (("TF_CPP_MIN_LOG_LEVEL", "0"), ("TF_CPP_VMODULE", "dso_loader=2,gpu_device=2")),
    ),
    "bring_up": Step(
        "benchmarks/gpu_bring_up.py --output {output}",
        3,
        "benchmarks/gpu_bring_up.py --output {output} --size 64 --batch_size 2",
    ),
    "resnet50": _network("resnet50", 6, 150),
    "tests": Step(_TESTS, 5, f"{_TESTS} -k device_is_known", (("TFACCEL_GPU_REHEARSAL", "0"),)),
    "transformer": _network("transformer", 4, 90),
    "resnet50_float32": _network("resnet50", 2, 0, "--plan= --nostatic --notensor_float_32"),
    "vit_small": _network("vit_small", 4, 90),
    "lstm": _network("lstm", 2, 30),
    "efficientnet_b0": _network("efficientnet_b0", 5, 90),
    "mobilenet_v2": _network("mobilenet_v2", 4, 90),
    "unet": _network("unet", 3, 60),
    "speech_cnn": _network("speech_cnn", 2, 30),
    "cpu_and_gpu": Step(f"{_BENCH} auto", 3, f"{_BENCH} cpu --batch_size 2 --max_seconds 1"),
}


def run(step: Step, log: pathlib.Path, small: bool) -> str:
    """Runs a step, and gives what became of it.

    Args:
        step: of `STEPS`.
        log: the file for what it prints.
        small: whether sizes are to be tiny.
    """
    text = (step.small if small else step.command).format(output=log.parent)
    environment = os.environ | dict(step.environment) | {"PYTHONUNBUFFERED": "1"}
    if small:
        environment["TFACCEL_GPU_REHEARSAL"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(REPOSITORY), environment.get("PYTHONPATH")])
    )
    with log.open("w", encoding="utf-8") as file:
        try:
            ended = subprocess.run(
                [sys.executable, *shlex.split(text)],
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=60 * step.minutes,
                check=False,
                cwd=REPOSITORY,
                env=environment,
            )
        except subprocess.TimeoutExpired:
            return f"ended after {step.minutes:g} minutes"
    return "done" if ended.returncode == 0 else f"failed with status {ended.returncode}"
