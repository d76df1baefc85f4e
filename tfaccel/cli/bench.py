"""`tfaccel bench`: a model's training step or its predictions, stock Keras against tfaccel."""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from tfaccel.autotune.eligibility import ineligibility
from tfaccel.cli._bench_inference import measure_predictions
from tfaccel.cli._bench_measure import Wanted, measure
from tfaccel.cli._bench_result import BenchResult, BenchRow, machine_line
from tfaccel.cli._command import Command, Handover, UsageError, comma_list, seconds
from tfaccel.cli._progress import progress
from tfaccel.cli.explain import load_plan
from tfaccel.cli.inputs.feeds import define_feed_flags, make_feed
from tfaccel.cli.inputs.models import define_model_arguments, load_model
from tfaccel.cli.scaling.measuring import bench_workers
from tfaccel.cli.scaling.result import ScalingResult
from tfaccel.cli.scaling.worker import measure_here
from tfaccel.cli.tune import Tuned
from tfaccel.core.plan import Plan, make_pass
from tfaccel.inference.accelerating import AIMS
from tfaccel.system.machine import machine_facts

_AUTO, _EACH = "auto", "each"
_PLANS = (_EACH, _AUTO)
_TRAINING, _INFERENCE = _MODES = ("training", "inference")
_FLAGS = (
    *("batch_size", "data", "input_shape", "classes", "optimizer", "loss"),
    *("plans", "max_seconds", "devices"),
)
# Runs a program with these arguments and this environment, and returns what it printed.
Run = Callable[[Sequence[str], Mapping[str, str]], str]


def _define(parser: argparse.ArgumentParser) -> None:
    define_model_arguments(parser)
    define_feed_flags(parser)
    parser.add_argument(
        "--mode", choices=_MODES, default=_TRAINING, help="what is timed: training or predictions"
    )
    parser.add_argument(
        "--optimize",
        choices=AIMS,
        default=AIMS[0],
        help="what is to be fast in predictions (throughput)",
    )
    parser.add_argument(
        "--plans",
        type=comma_list,
        default=list(_PLANS),
        help=f"what to measure: {_AUTO} (the tuner's choice), {_EACH} (each pass alone), names of "
        "passes such as fused_norm+xla, files of saved plans",
    )
    parser.add_argument(
        "--max_seconds", type=seconds, default=120.0, help="seconds for all trials (120)"
    )
    parser.add_argument(
        "--devices",
        choices=(_AUTO, "cpu", "gpu"),
        default=_AUTO,
        help="where to train; auto: the CPU and, where there is one, the GPU",
    )
    parser.add_argument(
        "--workers",
        type=comma_list,
        metavar="1,2,3,4",
        help="how stock Keras's step scales: so many workers on this machine, one after the other, "
        "with a batch for each worker",
    )
    parser.add_argument("--launched", help=argparse.SUPPRESS)  # of a worker: the folder to write to


def _run(args: argparse.Namespace) -> BenchResult | Tuned | ScalingResult | Handover:
    if args.launched is not None:
        keras.utils.set_random_seed(0)
        measure_here(args, pathlib.Path(args.launched))
        return Handover(lambda: 0)
    if args.workers is not None:
        if args.mode != _TRAINING or args.plans != list(_PLANS) or args.devices != _AUTO:
            raise UsageError(
                "--workers times stock Keras's training step on the devices that it finds: leave "
                "out --mode, --plans and --devices"
            )
        return bench_workers(args, _words)
    return _predictions(args) if args.mode == _INFERENCE else _training(args)


def _predictions(args: argparse.Namespace) -> Tuned:
    """Predictions under plans and by engines, in the table of `tfaccel.accelerate`."""
    wanted = _wanted(args.plans)
    here, elsewhere = chosen_devices(args.devices, bool(tf.config.list_physical_devices("GPU")))
    if elsewhere and not here:
        raise UsageError("--devices=cpu: set CUDA_VISIBLE_DEVICES=-1, predictions are made here")
    keras.utils.set_random_seed(0)
    with progress() as told:
        told.stage(f"Building {args.model}")
        chosen = load_model(args.model, args)
        feed = make_feed(chosen, args)
        report = measure_predictions(
            chosen.model,
            feed.dataset,
            wanted.plans,
            wanted.search or wanted.each,
            args.max_seconds,
            told,
            optimize=args.optimize,
            cache_dir=False,
        )
    batch = f"Batches of {feed.batch_size}, {feed.source}."
    return Tuned(report, (*chosen.notes, batch, machine_line(machine_facts())))


def _training(args: argparse.Namespace) -> BenchResult:
    start = time.perf_counter()
    name, wanted = args.model, _wanted(args.plans)
    here, elsewhere = chosen_devices(args.devices, bool(tf.config.list_physical_devices("GPU")))
    share = args.max_seconds / (here + elsewhere)
    keras.utils.set_random_seed(0)
    rows: list[BenchRow] = []
    with progress() as told:
        told.stage(f"Building {name}")
        chosen = load_model(name, args)
        if obstacle := ineligibility(chosen.model):
            raise UsageError(obstacle)
        feed = make_feed(chosen, args)
        notes = list(chosen.notes)
        if here:
            rows, said = measure(chosen.model, feed, wanted, share, told)
            notes += said
    if elsewhere:
        more, said = cpu_rows(_words(args), share)
        rows, notes = [*rows, *more], [*notes, *said]
    return BenchResult(
        model=name,
        parameters=chosen.model.count_params(),
        batch_size=feed.batch_size,
        source=feed.source,
        machine=machine_facts(),
        command=shlex.join(["tfaccel", *_words(args)]),
        seconds=time.perf_counter() - start,
        rows=tuple(rows),
        notes=(*notes, *gpu_sentence(rows)),
    )


def _wanted(words: Sequence[str]) -> Wanted:
    plans = tuple(_plan(word) for word in words if word not in (_AUTO, _EACH))
    if not words:
        raise UsageError(f"--plans must name at least one plan, {_AUTO} or {_EACH}")
    return Wanted(_AUTO in words, _EACH in words, plans)


def _plan(word: str) -> Plan:
    if word.endswith(".json"):
        return load_plan(word)
    try:
        return Plan(tuple(make_pass(name.strip()) for name in word.split("+")))
    except ValueError as error:
        raise UsageError(
            f"--plans takes {_AUTO}, {_EACH}, names of passes joined by +, and .json files. "
            f"Received: {word!r}: {error}"
        ) from error


def chosen_devices(asked: str, has_gpu: bool) -> tuple[bool, bool]:
    """Whether to measure in this process, and whether in one that sees no GPU."""
    if asked == "gpu" and not has_gpu:
        raise UsageError("--devices=gpu: TensorFlow sees no GPU (`tfaccel doctor` says why)")
    return (not has_gpu or asked != "cpu"), (has_gpu and asked != "gpu")


def _words(args: argparse.Namespace) -> list[str]:
    """The command line that asks for the same."""
    given = {flag: getattr(args, flag) for flag in _FLAGS}
    joined = {flag: ",".join(v) if isinstance(v, list) else v for flag, v in given.items()}
    return ["bench", args.model, *(f"--{k}={v}" for k, v in joined.items() if v is not None)]


def cpu_rows(
    words: Sequence[str], max_seconds: float, run: Run | None = None
) -> tuple[list[BenchRow], list[str]]:
    """The rows of a process that sees no GPU.

    With `tf.device` alone Keras would choose XLA and cuDNN, as it sees the GPU: that is
    not the step of a machine without one.
    """
    command = [sys.executable, "-m", "tfaccel", *words]
    command += ["--devices=cpu", f"--max_seconds={max_seconds}", "--format=json"]
    try:
        found = json.loads((run or _output)(command, {"CUDA_VISIBLE_DEVICES": "-1"}))
        notes = [f"On the CPU: {note}" for note in found["notes"]]
        return [BenchRow.from_dict(row) for row in found["rows"]], notes
    except (subprocess.CalledProcessError, OSError, ValueError, KeyError, TypeError) as error:
        return [], [f"The CPU could not be measured: {error}"]


def _output(words: Sequence[str], environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        words, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


def gpu_sentence(rows: Sequence[BenchRow]) -> list[str]:
    """How much faster the GPU is, both by stock Keras."""
    stock = {row.device: row.step_seconds for row in rows if row.plan == str(Plan())}
    cpu, gpu = stock.get("CPU"), stock.get("GPU")
    if not cpu or not gpu:
        return []
    return [f"By stock Keras a step takes the CPU {cpu / gpu:.1f} times as long as the GPU."]


COMMAND = Command(_define, _run)
