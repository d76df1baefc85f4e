"""Each engine and precision on every family of keras.applications, and on trained models.

    python benchmarks/prediction_families.py

Nothing is timed, so that other work on the machine does no harm: each way to predict is compared
with the model's own function as `tfaccel.accelerate` compares it, and accepted or refused by the
same bounds. Families have random weights with the statistics of a batch and give logits; the
examples' models are trained, and their accuracy is that of samples which nothing was chosen by.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import _common
import _datasets
import _networks
import _random_nets
import _speech_data
import _speech_features
import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

from tfaccel import passes
from tfaccel.autotune.trial import Trial
from tfaccel.core.plan import Plan
from tfaccel.core.workload import Workload
from tfaccel.inference.engines import EIGHT_BITS, ONNXRuntime, OpenVINO
from tfaccel.inference.predict_function import own_function
from tfaccel.inference.quality import Quality, accuracy
from tfaccel.inference.sample import spec_of
from tfaccel.inference.trials import PredictionTrials
from tfaccel.measure.outcome import Outcome

_MODELS = flags.DEFINE_list("models", None, "names of the rows; all by default")
_EPOCHS = flags.DEFINE_integer("epochs", 12, "of the trained models", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", str(_common.RESULTS), "the folder for the results")
_RESUME = flags.DEFINE_bool("resume", False, "go on with the file that is there")

# The smallest of each family, and the pixels of a side that it takes at least, from 64 on.
_FAMILIES = {
    "ConvNeXtTiny": 64,
    "DenseNet121": 64,
    "EfficientNetB0": 64,
    "EfficientNetV2B0": 64,
    "InceptionResNetV2": 75,
    "InceptionV3": 75,
    "MobileNet": 64,
    "MobileNetV2": 64,
    "MobileNetV3Small": 64,
    "NASNetMobile": 64,
    "ResNet50": 64,
    "ResNet50V2": 64,
    "VGG16": 64,
    "Xception": 71,
}
_BATCH, _CLASSES = 16, 100
_MAX_DROP = 0.005
_TRACED = (passes.FoldedNorm(), passes.FrozenWeights())
_WAYS = {
    "TensorFlow float32": Plan(_TRACED),
    "TensorFlow bfloat16": Plan((passes.MixedPrecision("bfloat16"), *_TRACED)),
    "OpenVINO float32": Plan((OpenVINO("float32", "throughput"),)),
    "OpenVINO bfloat16": Plan((OpenVINO("bfloat16", "throughput"),)),
    "ONNX Runtime float32": Plan((ONNXRuntime("float32", "throughput"),)),
    "OpenVINO int8": Plan((OpenVINO(EIGHT_BITS, "throughput"),)),
    "ONNX Runtime int8": Plan((ONNXRuntime(EIGHT_BITS, "throughput"),)),
}


@dataclasses.dataclass(frozen=True)
class _Samples:
    """Labelled samples, half of which 8 bits are calibrated and judged by."""

    x: np.ndarray
    y: np.ndarray

    @property
    def chosen_by(self) -> Quality:
        x, y = tf.constant(self.x[::2]), self.y[::2]
        return Quality(x, y, accuracy, _MAX_DROP, seconds=60.0)

    def accuracy_of(self, predict: Callable[[Any], Any]) -> float:
        """That of the other half, batch by batch."""
        x, y = self.x[1::2], self.y[1::2]
        batches = [x[start : start + _BATCH] for start in range(0, len(x), _BATCH)]
        found = [np.asarray(predict([(tf.constant(batch),)])) for batch in batches]
        return accuracy(y, np.concatenate(found))


class _Family:
    """A model of keras.applications, small, with random weights."""

    def __init__(self, name: str):
        self.name = name

    def made(self) -> tuple[keras.Model, np.ndarray, None]:
        """The model, and a batch."""
        size = _FAMILIES[self.name]
        shape = (size, size, 3)
        keras.utils.set_random_seed(0)
        build = getattr(keras.applications, self.name)
        model = build(weights=None, input_shape=shape, classes=_CLASSES, classifier_activation=None)
        _open_scales(model)
        x = _random_nets.images((2 * _BATCH, *shape), seed=0, high=255.0)
        return _random_nets.calibrated(model, x[_BATCH:]), x[:_BATCH], None


def _open_scales(model: keras.Model) -> None:
    """Lets the branches count that a fresh ConvNeXt multiplies by almost nothing."""
    random = np.random.default_rng(2)
    for layer in model.layers:
        if type(layer).__name__ == "LayerScale":
            layer.gamma.assign(random.uniform(0.1, 0.5, layer.gamma.shape))


class _Trained:
    """A model of an example, once it has learnt."""

    def __init__(self, name: str, learnt: Callable[[], tuple[keras.Model, _Samples]]):
        self.name, self._learnt = name, learnt

    def made(self) -> tuple[keras.Model, np.ndarray, _Samples]:
        """The model, a batch, and samples that it has not seen."""
        model, samples = self._learnt()
        return model, samples.x[:_BATCH], samples


def _fitted(model: keras.Model, x: np.ndarray, y: np.ndarray, batch_size: int) -> keras.Model:
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x, y, epochs=_EPOCHS.value, batch_size=batch_size, verbose=0)
    return model


def _digits(build: Callable[..., keras.Model]) -> tuple[keras.Model, _Samples]:
    images = _datasets.prepare("digits", _datasets.SOURCES["digits"](), 24)
    keras.utils.set_random_seed(0)
    model = build(images.image_shape, images.classes)
    return _fitted(model, *images.train, batch_size=64), _Samples(*images.test)


def _speech() -> tuple[keras.Model, _Samples]:
    recordings = _speech_data.spoken_digits()
    frontend = _speech_features.Frontend(recordings.rate_hz, "log_mel", 1.0)

    def arrays(indices: np.ndarray) -> list[np.ndarray]:
        batches = _speech_features.pipeline(recordings, indices, frontend, batch_size=32)
        return [np.concatenate(parts) for parts in zip(*batches.as_numpy_iterator(), strict=True)]

    keras.utils.set_random_seed(0)
    model = _networks.speech_cnn(frontend.shape, len(recordings.label_names))
    test = arrays(recordings.test)
    return _fitted(model, *arrays(recordings.train), batch_size=32), _Samples(*test)


_TRAINED = (
    _Trained("cnn on digits, trained", lambda: _digits(_networks.cnn)),
    _Trained("resnet8 on digits, trained", lambda: _digits(lambda *a: _networks.resnet(*a, 8))),
    _Trained("cnn on spoken digits, trained", _speech),
)


class _Compared(PredictionTrials):
    """Trials that keep the classes and the accuracy of what they judge, refused or not."""

    def __init__(self, workload: Workload, own: Any, samples: _Samples | None):
        self._samples = samples
        self.kept: dict[Plan, dict[str, float | None]] = {}
        # Nothing here is timed: each look at the clock is one second after the last.
        ticks = itertools.count()
        quality = None if samples is None else samples.chosen_by
        super().__init__(workload, own, lambda: float(next(ticks)), quality=quality)

    def _judged(self, trial: Trial) -> Trial:
        function, data = self.step_function(trial.plan), list(self.workload.batches)
        classes = [np.asarray(one(data)).argmax(-1) for one in (self._own, function)]
        self.kept[trial.plan] = {
            "top1": float(np.mean(classes[0] == classes[1])),
            "accuracy": None if self._samples is None else self._samples.accuracy_of(function),
        }
        return super()._judged(trial)


def measure(model: _Family | _Trained) -> _common.Row:
    """A row of results: what each way makes of a model."""
    made, x, samples = model.made()
    batch, own = (tf.constant(x),), own_function(made)
    logits = own([batch]).numpy()
    workload = Workload(made, (batch,), spec_of(batch), training=False, allow=(EIGHT_BITS,))
    sides = {}
    with _Compared(workload, own, samples) as bench:
        for name, plan in _WAYS.items():
            if samples is None and name.endswith(EIGHT_BITS):
                continue  # of random weights no labels say what 8 bits lose
            plan = _able(plan, workload)
            trial = bench.check(plan, float("inf"))
            sides[name] = {
                "accepted": trial.outcome is Outcome.FASTER,
                "outcome": trial.outcome.value,
                "reason": trial.reason,
                "error": trial.drift.output if trial.drift else None,
                **bench.kept.get(plan, {"top1": None, "accuracy": None}),
            }
            bench.forget(plan)
    return {
        "pixels": x.shape[1],
        "spread": _random_nets.spread(logits),
        "accuracy": None if samples is None else samples.accuracy_of(own),
        "sides": sides,
    }


def _able(plan: Plan, workload: Workload) -> Plan:
    """A plan less the passes of `_TRACED` that have nothing to do for the model."""
    idle = [item for item in _TRACED if item.unsupported(workload) is not None]
    return Plan(tuple(item for item in plan.passes if item not in idle))


def _cell(name: str) -> Callable[[_common.Row], str]:
    def cell(row: _common.Row) -> str:
        side = row.get("sides", {}).get(name)
        if side is None:
            return ""
        if side["error"] is None:
            return side["outcome"]
        classes = f"{side['top1']:.0%}" if side["accuracy"] is None else f"{side['accuracy']:.2%}"
        return f"{side['error']:.0e}, {classes}{'' if side['accepted'] else ', refused'}"

    return cell


def _own_cell(row: _common.Row) -> str:
    if "error" in row:
        return row["error"]
    return "" if row["accuracy"] is None else f"{row['accuracy']:.2%}"


_COLUMNS = (
    _common.Column("model", lambda row: row["model"], is_number=False),
    _common.Column("own accuracy", _own_cell),
    _common.Column("spread", lambda row: f"{row['spread']:.2f}" if "spread" in row else ""),
    *(_common.Column(name, _cell(name)) for name in _WAYS),
)


def summarize(rows: Sequence[_common.Row]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a cell holds, and why a way was refused."""
    sentences = [
        "A cell has the largest relative error of outputs and, for random weights, the share of "
        "samples with the same class; for trained models the accuracy on held-out samples."
    ]
    for row in rows:
        for name, side in row.get("sides", {}).items():
            if not side["accepted"]:
                sentences.append(f"{row['model']}, {name}: {side['outcome']}: {side['reason']}")
    accepted = [s["accepted"] for row in rows for s in row.get("sides", {}).values()]
    return {"accepted": sum(accepted), "compared": len(accepted)}, tuple(sentences)


def main(argv: list[str]) -> None:
    _common.no_arguments(argv)
    models = [*_TRAINED, *map(_Family, _FAMILIES)]
    if _MODELS.value is not None:
        models = [model for model in models if model.name in _MODELS.value]
    title = "Predictions by each engine and precision: every family of keras.applications"
    folder = pathlib.Path(_OUTPUT.value)
    results = _common.Results("prediction-families", title, _COLUMNS, folder, _RESUME.value)
    _common.measure_each(results, models, measure, summarize)


if __name__ == "__main__":
    app.run(main)
