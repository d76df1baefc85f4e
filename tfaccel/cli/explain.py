"""`tfaccel explain`: layer by layer, what runs and why not something faster."""

import argparse
import pathlib

from tfaccel.cli._command import Command, UsageError
from tfaccel.cli._progress import progress
from tfaccel.cli.inputs.models import define_model_arguments, load_model
from tfaccel.core.plan import Plan
from tfaccel.explain.api import Explanation, explain


def _define(parser: argparse.ArgumentParser) -> None:
    define_model_arguments(parser)
    parser.add_argument(
        "--plan", help="a plan saved by `tfaccel tune` or Plan.save; every pass by default"
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
        raise UsageError(str(error)) from error


def _run(args: argparse.Namespace) -> Explanation:
    plan = None if args.plan is None else load_plan(args.plan)
    with progress() as told:
        told.stage(f"Building {args.model}")
        model = load_model(args.model, args).model
        told.stage(f"Looking at {len(model.layers)} layers")
        return explain(model, plan)


COMMAND = Command(_define, _run)
