"""One of the workers whose steps `tfaccel bench --workers` times."""

import argparse
import itertools
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from tfaccel.cli.inputs.feeds import Feed, make_feed
from tfaccel.cli.inputs.models import load_model
from tfaccel.distribute import AccelStrategy, MultiWorker
from tfaccel.measure.timing import Clock

# The first is traced, and the next find what they need cold.
_WARM_STEPS = 3
_FEWEST_STEPS, _MOST_STEPS = 5, 50


def measure_here(args: argparse.Namespace, folder: pathlib.Path) -> None:
    """Times steps of all workers together, and of this one alone; writes them into the folder.

    Args:
        args: the flags of `tfaccel bench`. `batch_size` is that of a worker; a third of
            `max_seconds` may go by in steps of either kind, beyond the fewest.
    """
    # Before anything else uses TensorFlow.
    strategy = AccelStrategy(mixed_precision=False, data_format=False)
    share = args.batch_size
    with strategy.scope():
        together = load_model(args.model, args)
    workers = strategy.strategy if isinstance(strategy.strategy, MultiWorker) else None
    args.batch_size = strategy.global_batch_size(share)
    feed = make_feed(together, args)
    seconds = _seconds(together.model, feed, workers, args.max_seconds / 3, lambda: None)
    alone = seconds
    if workers is not None:
        args.batch_size = share
        single = load_model(args.model, args)
        single.model.jit_compile = together.model.jit_compile
        own = make_feed(single, args)
        alone = _seconds(single.model, own, workers, args.max_seconds / 3, lambda: _meet(workers))
    found = {
        "together": seconds,
        "alone": alone,
        "samples": feed.batch_size,
        "source": feed.source,
        "parameters": together.model.count_params(),
        "gradient_bytes": gradient_bytes(together.model),
        "notes": together.notes,
    }
    index = 0 if workers is None else workers.cluster_resolver.task_id
    (folder / f"worker-{index}.json").write_text(json.dumps(found), encoding="utf-8")
    if workers is not None:
        _meet(workers)  # a worker that leaves breaks the others


class StepTimes(keras.callbacks.Callback):
    """The seconds of each step.

    Args:
        meet: called before each step.
        clock: tells the seconds.
    """

    def __init__(self, meet: Callable[[], Any], clock: Clock = time.perf_counter):
        super().__init__()
        self._meet, self._clock = meet, clock
        self._begun = 0.0
        self.seconds: list[float] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._meet()
        self._begun = self._clock()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seconds.append(self._clock() - self._begun)


def _seconds(
    model: keras.Model,
    feed: Feed,
    workers: MultiWorker | None,
    max_seconds: float,
    meet: Callable[[], Any],
) -> list[float]:
    """Of some steps, as many on each worker."""
    first = _fit(model, feed, _WARM_STEPS, meet)
    usual = statistics.median(first[1:])
    if workers is not None:
        usual = workers.share_number(usual)
    count = math.floor(max_seconds / usual) if usual else _MOST_STEPS
    return _fit(model, feed, min(max(count, _FEWEST_STEPS), _MOST_STEPS), meet)


def _fit(model: keras.Model, feed: Feed, steps: int, meet: Callable[[], Any]) -> list[float]:
    times = StepTimes(meet)
    model.fit(feed.dataset, steps_per_epoch=steps, shuffle=False, verbose=0, callbacks=[times])
    return times.seconds


def _meet(workers: MultiWorker) -> None:
    """Returns when all workers have come here."""
    workers.reduce("SUM", tf.constant(1.0), axis=None).numpy()


def gradient_bytes(model: keras.Model) -> int:
    """What a worker hands to the others in a step."""
    return sum(
        math.prod(itertools.chain([1], v.shape)) * tf.as_dtype(v.dtype).size
        for v in model.trainable_variables
    )
