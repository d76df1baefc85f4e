"""A program for `tfaccel run --workers`, of which one kills itself at a point of its training.

    mortal.py OUT_DIR POINT VICTIM

It does so once: the next start goes on to the end. POINT is one of POINTS; what is tried, raced and
chosen in between changes nothing, so that trainings can be compared to the last bit.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
import sys
import time
import unittest.mock

import keras
import models

import tfaccel
from tfaccel.autotune.expected.expectation import Candidate
from tfaccel.measure import racing
from tfaccel.training.phases import Phase

POINTS = ("none", "start", "trial", "race", "training", "validation", "checkpoint")
EPOCHS = 3


def begun():
    """When this process was started, imports not included (Linux)."""
    fields = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot


class Reaper:
    """Kills this process where it is the victim, at the point, if none was killed before."""

    def __init__(self, out, point, victim):
        self.point = point
        self._died, self._is_victim = out / "died", victim

    def at(self, point):
        if point == self.point and self._is_victim and not self._died.exists():
            self._died.write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


class Points(keras.callbacks.Callback):
    """Tells the reaper of the points amid a fit."""

    def __init__(self, reaper, accel):
        super().__init__()
        self._reaper, self._accel, self._epoch = reaper, accel, 0

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self._accel.session.phase is Phase.RACE:
            self._reaper.at("race")
        if (self._epoch, batch) == (1, 1):
            self._reaper.at("training")

    def on_test_batch_end(self, batch, logs=None):
        if self._epoch == 1:
            self._reaper.at("validation")


@dataclasses.dataclass(frozen=True)
class Same(tfaccel.Pass):
    """Changes nothing; the point `trial` is where a trial traces a step under it."""

    name = "same"
    traced = staticmethod(lambda: None)  # called as it is traced

    def unsupported(self, workload):
        return None

    @contextlib.contextmanager
    def applied(self, context):
        Same.traced()
        yield


def saved(reaper):
    """Has the second epoch's backup end before its file is in its place."""
    sync, calls = os.fsync, []

    def fsync(file):
        sync(file)
        calls.append(file)
        if len(calls) == 2:
            reaper.at("checkpoint")

    return unittest.mock.patch.object(os, "fsync", fsync)


def train(strategy, reaper):
    def traced():
        if accel.session.phase is Phase.TRIALS:
            reaper.at("trial")

    Same.traced = staticmethod(traced)
    accel = tfaccel.AccelCallback(
        includes=["same"],
        tuning="full" if reaper.point == "trial" else "quick",
        tuning_share=None if reaper.point == "trial" else 1.0,
        max_tuning_seconds=1e6,
        cache_dir=False,
    )
    with strategy.scope():
        model = models.mlp()
    x, y = models.images(320)
    history = model.fit(
        x,
        y,
        batch_size=16,
        epochs=EPOCHS,
        shuffle=False,
        verbose=0,
        validation_data=models.images(32, seed=4),
        callbacks=[accel, Points(reaper, accel)],
    )
    return {
        "epochs": history.epoch,
        "history": history.history,
        "weights": [w.astype("float64").tolist() for w in model.get_weights()],
        "slots": [v.numpy().tolist() for v in model.optimizer.variables],
        "path": [phase.name for phase in accel.session.path],
    }


def main():
    out, point, victim = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    assert point in POINTS
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    with (out / f"starts-{index}").open("a") as starts:
        starts.write(f"{begun()}\n")
    reaper = Reaper(out, point, index == victim)
    reaper.at("start")
    strategy = tfaccel.AccelStrategy()
    always = unittest.mock.patch.object(Candidate, "pays", lambda *args: True)
    never_hopeless = unittest.mock.patch.object(racing, "CLEARLY_SLOWER", math.inf)
    with always, never_hopeless, saved(reaper):
        found = train(strategy, reaper)
    (out / f"result-{index}.json").write_text(json.dumps(found, default=float))


if __name__ == "__main__":
    main()
