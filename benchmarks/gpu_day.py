"""All that is to be shown on a GPU, in order of worth, in steps of 10 minutes at most.

    python benchmarks/gpu_day.py --output results           # all of it: half an hour
    python benchmarks/gpu_day.py --output results --steps resnet50,transformer
    python benchmarks/gpu_day.py --output rehearsal --small   # on a CPU: each command, tiny

Each step is a process of its own with a time of its own, so that one that crashes or hangs takes
nothing from the others. All write their results as they go, and their output to a file beside.
"""

import pathlib
import sys
import time
from collections.abc import Sequence

from _gpu_steps import STEPS, run
from absl import app, flags

_STEPS = flags.DEFINE_list("steps", list(STEPS), f"which, of {', '.join(STEPS)}")
_OUTPUT = flags.DEFINE_string("output", None, "the folder for results and logs", required=True)
_SMALL = flags.DEFINE_bool("small", False, "tiny sizes: whether each command runs, anywhere")
_MINUTES = flags.DEFINE_float("minutes", 30.0, "after which no step begins", lower_bound=0.0)

flags.register_validator(
    "steps", lambda names: set(names) <= set(STEPS), f"must be names of {', '.join(STEPS)}"
)


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
