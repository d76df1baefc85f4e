"""`tfaccel explain`: layer by layer, what runs and why not something faster."""

import pathlib
from collections.abc import Sequence

from absl import flags

from tfaccel.cli._command import Command, UsageError
from tfaccel.cli._progress import progress
from tfaccel.cli.inputs.models import define_model_flags, load_model, only_model
from tfaccel.core.plan import Plan
from tfaccel.explain.api import Explanation, explain


def _define(values: flags.FlagValues) -> None:
    define_model_flags(values)
    flags.DEFINE_string(
        "plan",
        None,
        "a plan saved by `tfaccel tune` or Plan.save; every pass by default",
        flag_values=values,
    )


def load_plan(path: str) -> Plan:
    """A saved plan.

    Raises:
        UsageError: the file is missing, or no plan.
    """
    try:
        return Plan.load(pathlib.Path(path))
    except FileNotFoundError:
        raise UsageError(f"there is no such plan: {path}") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no plan: {error}") from error


def _run(arguments: Sequence[str], values: flags.FlagValues) -> Explanation:
    name = only_model(arguments, "explain")
    plan = None if values.plan is None else load_plan(values.plan)
    with progress() as told:
        told.stage(f"Building {name}")
        model = load_model(name, values).model
        told.stage(f"Looking at {len(model.layers)} layers")
        return explain(model, plan)


COMMAND = Command(
    name="explain",
    usage="MODEL [flags]",
    summary="says what each layer runs as, and why not as something faster",
    define=_define,
    run=_run,
)
