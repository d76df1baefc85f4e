"""All that is to be shown on a GPU, in order of worth, in steps of 10 minutes at most.

    python benchmarks/gpu_day.py --output results           # all of it: half an hour
    python benchmarks/gpu_day.py --output results --steps resnet50,transformer
    python benchmarks/gpu_day.py --output rehearsal --small   # on a CPU: each command, tiny

Each step is a process of its own with a time of its own, so that one that crashes or hangs takes
nothing from the others. All write their results as they go, and their output to a file beside.
"""

import dataclasses
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import app, flags

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

_STEPS = flags.DEFINE_list("steps", list(STEPS), f"which, of {', '.join(STEPS)}")
_OUTPUT = flags.DEFINE_string("output", None, "the folder for results and logs", required=True)
_SMALL = flags.DEFINE_bool("small", False, "tiny sizes: whether each command runs, anywhere")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "after which no step begins", lower_bound=0.0)

flags.register_validator(
    "steps", lambda names: set(names) <= set(STEPS), f"must be names of {', '.join(STEPS)}"
)


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


def main(argv: Sequence[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"There are flags only, no other arguments. Received: {' '.join(argv[1:])}")
    folder = pathlib.Path(_OUTPUT.value).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    begun, failed = time.monotonic(), []
    for name in _STEPS.value:
        if time.monotonic() - begun > 60 * _MINUTES.value:
            print(f"{name}: not begun, as {_MINUTES.value:g} minutes are over")
            failed.append(name)
            continue
        start = time.monotonic()
        became = run(STEPS[name], folder / f"{name}.log", _SMALL.value)
        print(f"{name}: {became} ({time.monotonic() - start:.0f} s)", flush=True)
        if became != "done":
            failed.append(name)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    app.run(main)
