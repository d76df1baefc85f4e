"""Trainings that share a cache folder with other processes.

python tests/interrupted/sharing.py FOLDER COUNT         # so many, one after the other
python tests/interrupted/sharing.py FOLDER COUNT killed  # till it is killed while it writes
"""

import os
import pathlib
import signal
import sys
import warnings

if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

import numpy as np
from early import built_early
from fault_trainings import TRAININGS, as_measured, make_model, values_of


def train(name: str, folder: pathlib.Path | None) -> list[np.ndarray]:
    """One training; None for Keras alone."""
    training, model = TRAININGS[name], built_early(make_model())
    callbacks = [] if folder is None else [training.callback(folder)]
    with as_measured():
        model.fit(**training.arguments(), callbacks=callbacks)
    return values_of(model)


def die(*_) -> None:
    """In place of the move of a file that is written to where it is to be."""
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: pathlib.Path, count: int, is_killed: bool) -> None:
    stock = train("trials", None)
    for index in range(count):
        for path in folder.glob("*.json"):
            if index % 2:  # half of them find a plan, and half tune
                path.unlink(missing_ok=True)
        if is_killed and index == count - 1:
            os.replace = die
            for path in folder.glob("*.json"):
                path.unlink(missing_ok=True)
        for ours, keras_s in zip(train("trials", folder), stock, strict=True):
            np.testing.assert_array_equal(ours, keras_s)


if __name__ == "__main__":
    warnings.simplefilter("error", UserWarning)
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]), "killed" in sys.argv)
