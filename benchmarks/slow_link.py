"""What `compress_gradients="bfloat16"` wins on a slow link between two workers.

Makes two network namespaces with a link of 1 Gbit/s between them (iproute2's `ip` and `tc`; root),
and a worker in each, with a core of its own. They train a model of 25 M parameters, in blocks of
steps with gradients as they are and in bfloat16 that take turns.

    sudo python benchmarks/slow_link.py
"""

import contextlib
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import _cluster
import _common
import keras
import numpy as np
from absl import app, flags

import tfaccel
from tfaccel.measure.timing import median_interval

_MBITS = flags.DEFINE_integer("mbits", 1000, "Mbit/s of the link, each way", lower_bound=1)
_WIDTH = flags.DEFINE_integer("width", 4096, "of the model's hidden layer", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 32, "samples of a worker's batch", lower_bound=1)
_BLOCKS = flags.DEFINE_integer("blocks", 8, "of either side that are timed", lower_bound=3)
_BLOCK_STEPS = flags.DEFINE_integer("block_steps", 5, "steps of a block", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_FOLDER = flags.DEFINE_string("folder", None, "where a worker writes what it found")

# Of issue 25: how many times faster a step is to be.
_LEAST_GAIN = 1.6
_FEATURES, _CLASSES = 3072, 10  # CIFAR-10's
_NAMES = ("tfaccel-slow-0", "tfaccel-slow-1")
_HOSTS = ("10.213.77.1", "10.213.77.2")

COLUMNS = (
    _common.Column("link, Mbit/s", lambda row: str(row["mbits"])),
    _common.Column("parameters", lambda row: f"{row['parameters'] / 1e6:.1f} M"),
    _common.Column("float32 step, ms", lambda row: _common.milliseconds(row["plain_seconds"])),
    _common.Column("bfloat16 step, ms", lambda row: _common.milliseconds(row["sent_seconds"])),
    _common.Column("gain [95 %]", lambda row: "{:.2f}x [{:.2f}, {:.2f}]".format(*row["gain"])),
)


def _run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def link(mbits: int) -> Iterator[None]:
    """Two namespaces that reach each other by a link of so many Mbit/s; they go at the end."""
    ends = ("tfa-slow0", "tfa-slow1")
    for name in _NAMES:  # what a run that was killed has left
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    try:
        for name in _NAMES:
            _run("ip", "netns", "add", name)
        first, second = ends
        _run("ip", "link", "add", first, "netns", _NAMES[0], "type", "veth", "peer", "name",
             second, "netns", _NAMES[1])  # fmt: skip
        for name, end, host in zip(_NAMES, ends, _HOSTS, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{host}/30", "dev", end)
            for device in (end, "lo"):
                _run("ip", "-n", name, "link", "set", device, "up")
            # A token bucket for what goes out; packets wait in it for as long as TCP puts up with.
            _run("tc", "-n", name, "qdisc", "add", "dev", end, "root", "tbf", "rate",
                 f"{mbits}mbit", "burst", "256kb", "latency", "100ms")  # fmt: skip
        yield
    finally:
        for name in _NAMES:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def obstacle() -> str:
    """Why there can be no link, in words; empty where there can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root: run it by sudo"
    missing = [tool for tool in ("ip", "tc", "taskset") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} must be there (iproute2, util-linux)"
    try:
        with link(_MBITS.value):
            return ""
    except subprocess.CalledProcessError as error:
        return f"`{' '.join(error.cmd)}` failed: {error.stderr.strip()}"


def _built(strategy: tfaccel.AccelStrategy) -> keras.Model:
    """25 M parameters in three products: what is sent counts, and computing takes little."""
    keras.utils.set_random_seed(0)
    with strategy.scope():
        layers = [
            keras.layers.Dense(_WIDTH.value, activation="relu"),
            keras.layers.Dense(_FEATURES, activation="relu"),
            keras.layers.Dense(_CLASSES),
        ]
        model = keras.Sequential([keras.Input((_FEATURES,)), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss)
    return model


class _Seconds(keras.callbacks.Callback):
    """The seconds from one step's end to the next one's."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.ends.append(time.perf_counter())

    @property
    def mean(self) -> float:
        return (self.ends[-1] - self.ends[0]) / (len(self.ends) - 1)


def _block(model: keras.Model, batch_size: int) -> float:
    """A step's seconds, on average over a block."""
    rng = np.random.default_rng(0)
    samples = batch_size * (_BLOCK_STEPS.value + 1)
    x = rng.normal(size=(samples, _FEATURES)).astype(np.float32)
    y = rng.integers(0, _CLASSES, samples)
    clock = _Seconds()
    model.fit(x, y, batch_size=batch_size, shuffle=False, verbose=0, callbacks=[clock])
    return clock.mean


def measure_here(strategy: tfaccel.AccelStrategy) -> dict[str, Any]:
    """One worker's part; the strategy sends gradients as they are."""
    batch_size = strategy.global_batch_size(_BATCH_SIZE.value)
    plain, sent = _built(strategy), _built(strategy)
    _block(plain, batch_size)
    # It holds for what is traced from now on.
    tfaccel.AccelStrategy(strategy, compress_gradients="bfloat16")
    _block(sent, batch_size)
    pairs = [(_block(plain, batch_size), _block(sent, batch_size)) for _ in range(_BLOCKS.value)]
    return {
        "parameters": plain.count_params(),
        "plain_seconds": statistics.median(own for own, _ in pairs),
        "sent_seconds": statistics.median(faster for _, faster in pairs),
        "gain": list(median_interval([own / faster for own, faster in pairs])),
    }


def summarize(rows: list[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Whether it is as much as was asked for."""
    gain = rows[-1]["gain"][0]
    return {"gain": gain}, (f"A step is {gain:.2f} times faster ({_LEAST_GAIN} is asked for).",)


def main(argv: Sequence[str]) -> None:
    if _FOLDER.value is not None:
        # Before anything else uses TensorFlow.
        strategy = tfaccel.AccelStrategy(mixed_precision=False, data_format=False)
        _cluster.leave(_FOLDER.value, measure_here(strategy), strategy)
        return
    _common.no_arguments(argv)
    why_not = obstacle()
    if why_not:
        print(f"Nothing was measured: {why_not}")
        return
    title = f"Gradients in bfloat16 between two workers on a link of {_MBITS.value} Mbit/s"
    results = _common.Results("slow-link", title, COLUMNS, pathlib.Path(_OUTPUT.value))
    cores = _cluster.cores()
    prefixes = [
        ["ip", "netns", "exec", name, *_cluster.on_core(cores[place % len(cores)])]
        for place, name in enumerate(_NAMES)
    ]
    with link(_MBITS.value):
        words = [__file__, *sys.argv[1:], "--folder"]
        found = _cluster.run_workers(words, prefixes, _HOSTS)
    results.add({"mbits": _MBITS.value, **found[0]}, summarize)
    console = _common.console()
    console.print(results)
    console.print(f"Written to {results.path}")


if __name__ == "__main__":
    app.run(main)
