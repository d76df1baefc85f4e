"""Training a model with and without tfaccel, whatever it learns; the examples share it."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras


@dataclasses.dataclass(frozen=True)
class Data:
    """What `model.fit` and `model.evaluate` are called with."""

    fit: Mapping[str, Any]  # the arguments that hold training and validation data
    test: Mapping[str, Any]  # the arguments that hold the test data


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """How long the training is where nobody asked for a number of epochs.

    Long enough for tuning to pay where there is something to win, over soon enough
    for someone who only wants to look.

    Attributes:
        seconds: what stock Keras's training should take, about.
        fewest, most: bounds of the number of epochs, whatever the machine.
    """

    seconds: float
    fewest: int
    most: int


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to learn.

    Attributes:
        name: what the data are called.
        title: the data in words: what, how many, which shape.
        model_name: the network in words.
        build: makes the compiled model; one seed gives one model.
        data: makes the data anew for a seed, as a tf.data pipeline goes on with its
            shuffling and two trainings must see the same order. Given a number too,
            that many of the training's samples only.
        train_samples, test_samples: how many there are.
        batch_size: samples in a step.
        unit: what a sample is, in the plural.
        demonstration: where this is one.
    """

    name: str
    title: str
    model_name: str
    build: Callable[[int], keras.Model]
    data: Callable[[int, int | None], Data]
    train_samples: int
    test_samples: int
    batch_size: int
    unit: str = "samples"
    demonstration: Demonstration | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Batches in the training data, the last and smaller one included."""
        return math.ceil(self.train_samples / self.batch_size)


class EpochClock(keras.callbacks.Callback):
    """Times each epoch's training steps; validation is not counted."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []
        self._begin = 0.0

    def on_epoch_begin(self, epoch: int, logs=None) -> None:
        self._begin = time.perf_counter()

    def on_test_begin(self, logs=None) -> None:
        # Reading a metric waits for the steps that a GPU may still have in its queue.
        float(self.model.metrics[0].result())
        self.seconds.append(time.perf_counter() - self._begin)


@dataclasses.dataclass(frozen=True)
class Run:
    """What one training took and gave."""

    model: keras.Model  # the trained model
    fit_seconds: float  # all of `model.fit`, with compiling, tuning and validation
    # A step's median over the epochs after the first; None with one epoch.
    step_seconds: float | None
    test_accuracy: float  # on samples that were not trained on
    steps: int  # how many steps were trained
    history: Mapping[str, list[float]]  # each metric's values by epoch


def train(
    task: Task,
    seed: int,
    epochs: int,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    samples: int | None = None,
) -> Run:
    """Trains the task's model to the end; the callbacks are all that tfaccel asks for.

    Args:
        task: what to learn.
        seed: decides the weights and the order of the samples.
        epochs: how often the training data are gone through.
        callbacks: tfaccel's, or none for stock Keras.
        samples: how many of the training's samples to use; None for all.
    """
    model, data, clock = task.build(seed), task.data(seed, samples), EpochClock()
    begin = time.perf_counter()
    history = model.fit(**data.fit, epochs=epochs, callbacks=[clock, *callbacks], verbose=0).history
    fit_seconds = time.perf_counter() - begin
    accuracy = model.evaluate(**data.test, verbose=0, return_dict=True)["accuracy"]
    steps = task.steps_per_epoch
    if samples is not None:
        steps = min(steps, math.ceil(samples / task.batch_size))
    later = [seconds / steps for seconds in clock.seconds[1:]]
    step_seconds = statistics.median(later) if later else None
    return Run(model, fit_seconds, step_seconds, accuracy, steps * epochs, history)


def warm_up(task: Task) -> float:
    """Trains a model on a few batches, throws it away, and gives a step's time in seconds.

    What a process does once (starting threads, loading libraries) would otherwise
    be charged to whichever training comes first.
    """
    return train(task, seed=0, epochs=3, samples=8 * task.batch_size).step_seconds or 0.0


def demonstration_epochs(task: Task, step_seconds: float) -> int:
    """As many epochs as take stock Keras the demonstration's time.

    Args:
        task: one that is a demonstration.
        step_seconds: what `warm_up` found.
    """
    bounds = task.demonstration
    if bounds is None:
        raise ValueError(f"`task` must be a demonstration. Received: {task.title}")
    epochs = round(bounds.seconds / (task.steps_per_epoch * step_seconds))
    return min(max(epochs, bounds.fewest), bounds.most)
