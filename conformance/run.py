"""Runs Keras's own tests plain and with an AccelCallback in every fit, and compares.

Whatever passes plain must pass accelerated. Exceptions stand in allowed.txt, each
with its reason. The exit status is 0 when that holds, 1 when it does not, 2 when the
tests could not be run.

    python conformance/run.py                     # everything
    python conformance/run.py -k swap_ema         # unknown arguments go to pytest
    python conformance/run.py --reuse-plain       # the plain half as it was last time
    python conformance/run.py --plan fused_norm,fused_optimizer    # this, not the fastest
    python conformance/run.py --tests src/optimizers,src/losses    # others than the trainer's
"""

import argparse
import collections
import dataclasses
import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent
# Relative to the keras package.
TESTS = "src/trainers/trainer_test.py,src/callbacks"
REGRESSION, UNUSABLE = 1, 2
# Characters of a warning or reason, which may quote a whole TensorFlow error.
_SHOWN = 200


class CannotRunError(Exception):
    """The tests are missing or pytest ended without a record."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What one pass over the tests gave.

    Attributes:
        arguments: what pytest was given, so that a kept run is not taken for another.
        keras: the version whose tests these are.
        seconds: the run's length.
        outcomes: by test: "passed", "failed", "skipped", or "error".
        failures: by failing test: what pytest has to say about it.
        fits: what became of each accelerated fit.
        warnings: what tfaccel warned of, by test.
    """

    arguments: list[str]
    keras: str
    seconds: float
    outcomes: Mapping[str, str]
    failures: Mapping[str, str]
    fits: Sequence[Mapping[str, Any]]
    warnings: Sequence[Mapping[str, str]]

    def with_outcome(self, outcome: str) -> list[str]:
        """The tests that ended so."""
        return [test for test, found in self.outcomes.items() if found == outcome]

    def __str__(self) -> str:
        counts = collections.Counter(self.outcomes.values())
        return ", ".join(f"{n} {outcome}" for outcome, n in counts.most_common())


def keras_folder(tests: Sequence[str]) -> pathlib.Path:
    """The installed keras package, which must hold these tests."""
    spec = importlib.util.find_spec("keras")
    if spec is None or spec.origin is None:
        raise CannotRunError("keras is not installed; `make conformance` installs what is needed")
    folder = pathlib.Path(spec.origin).parent
    for test in map(folder.joinpath, tests):
        if not (test.is_file() or any(test.rglob("*_test.py"))):
            raise CannotRunError(f"this keras has no such tests in its wheel ({test})")
    return folder


def run_tests(
    name: str, tests: Sequence[str], arguments: Sequence[str], output: pathlib.Path
) -> Run:
    """Runs the tests in a process of their own; pytest's progress goes to the terminal."""
    folder = keras_folder(tests)
    record = output / f"{name}.json"
    record.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-p", "every_fit", "--record", str(record)]
    # Keras's folder as root, and no configuration file: neither ours nor one found above it.
    command += ["-c", os.devnull, "--rootdir", str(folder), "-p", "no:cacheprovider"]
    command += ["--quiet", "--no-header", "--no-summary", "--continue-on-collection-errors"]
    command += [*arguments, *(str(folder / test) for test in tests)]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "KERAS_BACKEND": "tensorflow"}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    start = time.monotonic()
    status = subprocess.run(command, env=environment, cwd=output, check=False).returncode
    if not record.exists():
        raise CannotRunError(f"pytest ended with status {status} and without a record ({name})")
    data = json.loads(record.read_text(encoding="utf-8"))
    data |= {"arguments": [*arguments, *tests], "seconds": time.monotonic() - start}
    record.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return Run(**data)


def kept_run(name: str, arguments: Sequence[str], output: pathlib.Path) -> Run | None:
    """The run of this name that was recorded last, if it was the same run."""
    try:
        run = Run(**json.loads((output / f"{name}.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    import keras

    return run if run.arguments == list(arguments) and run.keras == keras.__version__ else None


def read_allowed(file: pathlib.Path) -> dict[str, str]:
    """The allow-list: one `test: reason` a line, `#` for comments.

    Raises:
        CannotRunError: a line has no reason.
    """
    allowed = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        test, separator, reason = line.partition(": ")
        if not (separator and reason.strip()):
            raise CannotRunError(f"{file.name}:{number}: no `: ` and reason after the test")
        allowed[test.strip()] = reason.strip()
    return allowed


def regressions(plain: Run, accelerated: Run) -> dict[str, str]:
    """What passed plain and did not accelerated, with what became of it."""
    return {
        test: accelerated.outcomes.get(test, "not run")
        for test in plain.with_outcome("passed")
        if accelerated.outcomes.get(test) != "passed"
    }


def describe_fits(run: Run) -> str:
    """How many fits were accelerated, by which plans, and what tfaccel warned of."""
    fits = run.fits
    tuned = [fit for fit in fits if fit["tuned"]]
    plans = collections.Counter(" + ".join(fit["plan"]) for fit in fits if fit["plan"])
    fallen = [fit for fit in fits if fit["plan"] != fit["chosen"]]
    warned = collections.Counter(warning["message"] for warning in run.warnings)
    trials: collections.Counter[str] = collections.Counter()
    failed: collections.Counter[str] = collections.Counter()
    for fit in fits:
        trials.update(fit["outcomes"])
        failed.update(fit["failed"])
    outcomes = ", ".join(f"{n} {name.lower()}" for name, n in trials.most_common())
    lines = [
        f"fits: {len(fits)} with an AccelCallback, {len(tuned)} tuned, "
        f"{plans.total()} accelerated to the end, {len(fallen)} fallen back",
        f"trials: {outcomes or 'none'}",
        *(f"plan: {n} x {plan}" for plan, n in plans.most_common()),
        *(f"failed trial: {n} x {why[:_SHOWN]}" for why, n in failed.most_common()),
        *(f"warning: {n} x {message[:_SHOWN]}" for message, n in warned.most_common()),
    ]
    return "\n".join(lines)


def compare(plain: Run, accelerated: Run, allowed: Mapping[str, str]) -> int:
    """Prints the comparison; returns the exit status."""
    print(f"Keras {plain.keras}, {' '.join(plain.arguments)}")
    print(f"plain: {plain} in {plain.seconds:.0f} s")
    print(f"accelerated: {accelerated} in {accelerated.seconds:.0f} s")
    print(describe_fits(accelerated))
    found = regressions(plain, accelerated)
    for test in sorted(allowed.keys() & found.keys()):
        print(f"allowed: {test}: {allowed[test]}")
    for test in sorted(allowed.keys() & set(accelerated.with_outcome("passed"))):
        print(f"no longer needed in allowed.txt: {test}")
    unexpected = {test: outcome for test, outcome in found.items() if test not in allowed}
    for test, outcome in unexpected.items():
        print(f"\nREGRESSION: {test}: passed plain, {outcome} accelerated")
        print(accelerated.failures.get(test, ""))
    if not plain.with_outcome("passed"):
        print("Nothing passed plain, so nothing was compared.")
        return UNUSABLE
    print(f"{len(unexpected)} regressions")
    return REGRESSION if unexpected else 0


def main() -> int:
    """The runner."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--max-tuning-seconds", type=float, default=30.0, help="for each fit")
    parser.add_argument("--plan", help="names of passes, with commas, instead of tuning")
    parser.add_argument("--tests", default=TESTS, help="of Keras's package, with commas")
    parser.add_argument("--reuse-plain", action="store_true", help="if it was the same run")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "build" / "conformance")
    options, arguments = parser.parse_known_args()
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    tests = options.tests.split(",")
    try:
        allowed = read_allowed(HERE / "allowed.txt")
        plain = kept_run("plain", [*arguments, *tests], output) if options.reuse_plain else None
        plain = plain or run_tests("plain", tests, arguments, output)
        accelerate = ["--accelerate", "--max-tuning-seconds", str(options.max_tuning_seconds)]
        if options.plan:
            accelerate += ["--plan", options.plan]
        accelerated = run_tests("accelerated", tests, [*arguments, *accelerate], output)
    except CannotRunError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return UNUSABLE
    return compare(plain, accelerated, allowed)


if __name__ == "__main__":
    sys.exit(main())
