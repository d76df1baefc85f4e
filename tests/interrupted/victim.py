"""A training that is ended by a signal in the midst of a phase.

python tests/interrupted/victim.py POINT SIGNAL FOLDER   # FOLDER has the backup, and the cache
"""

import dataclasses
import os
import pathlib
import signal
import sys

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import keras
from early import built_early
from fault_points import doing
from fault_trainings import TRAININGS, Training, as_measured, make_model

from tfaccel.autotune.comparison.traced_observer import TracedObserver
from tfaccel.measure import racing
from tfaccel.system import json_files
from tfaccel.training.choose import PlanChooser
from tfaccel.training.guarded_step import GuardedStep
from tfaccel.training.live_race import LiveRace
from tfaccel.training.observe import Observing
from tfaccel.training.validation import Validation

# In which training, at which entry of what: all but the first are in the second epoch or later.
POINTS = {
    "observing": ("raced", Observing._timed_step, 3),
    "choosing": ("raced", PlanChooser.choose, 1),
    "a check": ("raced", TracedObserver.observe, 1),
    "a trial": ("trials", racing.race, 1),
    "the cache": ("trials", json_files.to_text, 1),
    "a race": ("raced", LiveRace.__call__, 5),
    "a plan's step": ("given", GuardedStep._run, 4),
    "a validation": ("given", Validation._run, 5),
}


def training_of(name: str) -> Training:
    """With epochs so short that each phase comes when some are kept."""
    training = TRAININGS[name]
    epochs = training.batches * training.epochs // 2
    return dataclasses.replace(training, batches=2, epochs=epochs)


def fit(name: str, folder: pathlib.Path, accelerated: bool = True) -> keras.Model:
    """The training, or what is left of it; BackupAndRestore knows."""
    training, model = training_of(name), built_early(make_model())
    own = [
        keras.callbacks.BackupAndRestore(folder / "backup"),
        keras.callbacks.ModelCheckpoint(folder / "model.keras"),
    ]
    added = [training.callback(folder / "cache")] if accelerated else []
    with as_measured():
        model.fit(**training.arguments(), callbacks=[*added, *own])
    return model


if __name__ == "__main__":
    training_name, function, nth = POINTS[sys.argv[1]]
    end = signal.Signals[sys.argv[2]]
    with doing(function.__code__, lambda: os.kill(os.getpid(), end), nth):
        fit(training_name, pathlib.Path(sys.argv[3]))
    sys.exit("it was not reached")
