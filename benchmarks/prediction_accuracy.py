"""What `tfaccel.accelerate` does to the accuracy and the speed of trained models.

The image example's networks learn scikit-learn's digits, and predict images that were held out,
before and after.

    python benchmarks/prediction_accuracy.py
"""

import pathlib
from typing import Any

import _common
import _datasets
import _networks
import keras
import numpy as np
from absl import app, flags

import tfaccel

_EPOCHS = flags.DEFINE_integer("epochs", 12, "of training", lower_bound=1)
_SECONDS = flags.DEFINE_float("tuning_seconds", 60.0, "what choosing may take", lower_bound=0.0)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_SIZE, _SAMPLE = 24, 64


class _Network:
    """One of the example's networks."""

    def __init__(self, name: str):
        self.name = name

    def trained(self, images: _datasets.Images) -> keras.Model:
        """The network, once it has learnt."""
        keras.utils.set_random_seed(0)
        shape, classes = images.image_shape, images.classes
        small = self.name == "cnn"
        model = _networks.cnn(shape, classes) if small else _networks.resnet(shape, classes, 8)
        model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(*images.train, epochs=_EPOCHS.value, batch_size=64, verbose=0)
        return model


def measure(network: _Network) -> _common.Row:
    """A row of results."""
    images = _datasets.prepare("digits", _datasets.SOURCES["digits"](), _SIZE)
    model, (x, y) = network.trained(images), images.test
    before = model.predict(x, verbose=0).argmax(-1)
    seconds = _SECONDS.value
    fast = tfaccel.accelerate(
        model, x[:_SAMPLE], max_tuning_seconds=seconds, cache_dir=False, verbose=0
    )
    after = fast.predict(x, verbose=0).argmax(-1)
    report = fast.report
    drifts = [trial.drift for trial in report.trials if trial.plan == report.plan]
    return {
        "images": len(y),
        "plan": str(fast.plan),
        "speedup": [report.speedup, *report.speedup_interval],
        "accuracy": [float(np.mean(said == y)) for said in (before, after)],
        "same_class": float(np.mean(before == after)),
        "output_error": next((drift.output for drift in drifts if drift), 0.0),
    }


def _cell(text: str) -> Any:
    return lambda row: row["error"] if "error" in row else text.format(**row)


_COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("images", _cell("{images}")),
    _common.Column(
        "speedup [95 %]", _cell("{speedup[0]:.2f}x [{speedup[1]:.2f}, {speedup[2]:.2f}]")
    ),
    _common.Column("accuracy before", _cell("{accuracy[0]:.4f}")),
    _common.Column("after", _cell("{accuracy[1]:.4f}")),
    _common.Column("same class", _cell("{same_class:.1%}")),
    _common.Column("outputs off by", _cell("{output_error:.1e}")),
    _common.Column("plan", _cell("{plan}"), is_number=False),
)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    title = "Trained models before and after tfaccel.accelerate"
    folder = pathlib.Path(_OUTPUT.value)
    results = _common.Results("prediction-accuracy", title, _COLUMNS, folder)
    _common.measure_each(results, [_Network("cnn"), _Network("resnet8")], measure)


if __name__ == "__main__":
    app.run(main)
