"""`tfaccel accelerate`: the fastest faithful predictions of a model, in a folder."""

import argparse
import pathlib
from typing import Any

import keras

from tfaccel.cli._command import Command, UsageError, comma_list, positive_int, seconds
from tfaccel.cli._progress import progress
from tfaccel.cli.inputs.feeds import NpzSamples, first_outputs
from tfaccel.cli.inputs.models import define_model_arguments, load_model
from tfaccel.cli.tune import Tuned
from tfaccel.data.findings import first_line
from tfaccel.inference import AcceleratedModel, accelerate
from tfaccel.inference.accelerating import AIMS
from tfaccel.inference.saving.save import check_free


def _define(parser: argparse.ArgumentParser) -> None:
    define_model_arguments(parser)
    parser.add_argument(
        "--data", help="an .npz file with an array x, or arrays named as the model's inputs"
    )
    parser.add_argument("-o", "--output", help="the folder to write, for tfaccel.load and others")
    parser.add_argument(
        "--batch_size", type=positive_int, default=32, help="samples in a batch (32)"
    )
    parser.add_argument(
        "--optimize", choices=AIMS, default=AIMS[0], help="what is to be fast (throughput)"
    )
    parser.add_argument(
        "--allow", type=comma_list, default=[], help="int8: engines may compute in 8 bits"
    )
    parser.add_argument(
        "--max_drop", type=float, default=0.005, help="how much accuracy 8 bits may cost (0.005)"
    )
    parser.add_argument(
        "--max_seconds", type=seconds, default=120.0, help="seconds for all trials (120)"
    )
    parser.add_argument("--includes", type=comma_list, help="names of passes and engines to try")
    parser.add_argument(
        "--excludes", type=comma_list, default=[], help="names of those to leave out"
    )


def _run(args: argparse.Namespace) -> Tuned:
    for flag, what in (("data", "x.npz"), ("output", "folder")):
        if not getattr(args, flag):
            raise UsageError(f"`tfaccel accelerate` needs --{flag}={what}")
    output = pathlib.Path(args.output)
    try:
        check_free(output)  # better now than after the trials
    except ValueError as error:
        raise UsageError(f"--output: {error}") from error
    with progress() as told:
        told.stage(f"Building {args.model}")
        chosen = load_model(args.model, args)
        file = NpzSamples(pathlib.Path(args.data))
        x = file.inputs(chosen.model)
        y = file.labels(chosen.model, first_outputs(chosen.model, x)) if args.allow else None
        told.stage("Trying plans and engines", args.max_seconds)
        fast = _accelerated(chosen.model, x, y, args)
        told.stage(f"Writing {output}")
        fast.save(output)
    count = min(args.batch_size, len(keras.tree.flatten(x)[0]))
    notes = (f"Tried on {count} samples of {args.data}.", f"Written: {output}")
    return Tuned(fast.report, notes)


def _accelerated(model: keras.Model, x: Any, y: Any, args: argparse.Namespace) -> AcceleratedModel:
    try:
        return accelerate(
            model,
            x,
            y=y,
            allow=tuple(args.allow),
            max_drop=args.max_drop,
            batch_size=args.batch_size,
            optimize=args.optimize,
            includes=args.includes,
            excludes=args.excludes,
            max_tuning_seconds=args.max_seconds,
            verbose=0,
        )
    except (TypeError, ValueError) as error:
        raise UsageError(first_line(error)) from error


COMMAND = Command(_define, _run)
