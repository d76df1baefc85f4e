"""8 bits in tfaccel.accelerate: only when asked, and no worse than the user allows."""

import json

import inference_models
import keras
import numpy as np
import pytest
from fake_engine import FakeEngine
from inference_models import COUNT, accelerate, image_model, numbers

import tfaccel
from tfaccel.autotune.report import Report
from tfaccel.core.unsupported import Refusal
from tfaccel.inference.engines import ENGINES
from tfaccel.inference.quality import accuracy

layers = keras.layers
winning = inference_models.winning
FAKE = [FakeEngine(precision="int8")]
ASKED = {"allow": ("int8",), "max_drop": 0.1}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    for name, value in (("fails", False), ("sizes", []), ("calibrated", []), ("wrong", 0.0)):
        monkeypatch.setattr(FakeEngine, name, value)


def classifier(classes=3):
    return keras.Sequential([keras.Input((4,)), layers.Dense(classes, activation="softmax")])


def labelled(model, x):
    """The model's own classes, so that its accuracy is 1."""
    return model.predict(x, verbose=0).argmax(-1)


def test_nobody_gets_8_bits_who_did_not_ask(winning):
    model, x = classifier(), numbers(4)
    fast = accelerate(model, x, FAKE, y=labelled(model, x))
    assert fast.plan.is_baseline
    assert fast.report.trials[1].refusal is Refusal.SETTING
    tried = accelerate(model, x, includes=["fake_engine"], max_tuning_seconds=1e6).report.trials
    assert not [one for one in tried if "int8" in str(one.plan)]


def test_what_loses_little_enough_wins(winning):
    model, x = classifier(), numbers(4)
    FakeEngine.wrong = 1 / COUNT
    fast = accelerate(model, x, FAKE, y=labelled(model, x), **ASKED)
    assert fast.plan.passes == tuple(FAKE), fast.report.reasons()
    before, after = (trial.metric for trial in fast.report.trials)
    assert before == 1.0 and after == pytest.approx(1 - 1 / COUNT)
    headings, rows = fast.report.table()
    place = headings.index("metric")
    assert [row[place] for row in rows] == ["1.0000", f"{1 - 1 / COUNT:.4f}"]
    assert Report.from_json(fast.report.to_json()) == fast.report


def test_what_loses_too_much_is_refused_with_the_figures(winning):
    model, x = classifier(), numbers(4)
    FakeEngine.wrong = 3 / COUNT
    fast = accelerate(model, x, FAKE, y=labelled(model, x), **ASKED)
    assert fast.plan.is_baseline
    trial = fast.report.trials[1]
    assert trial.outcome is tfaccel.Outcome.UNFAITHFUL
    assert trial.metric == 0.75 and "max_drop=0.1" in trial.reason


def test_the_search_tries_8_bits_beside_the_rest(winning):
    model, x = classifier(), numbers(4)
    asked = {"y": labelled(model, x), "includes": ["fake_engine"], "max_tuning_seconds": 1e6}
    report = accelerate(model, x, **asked, **ASKED).report
    precisions = [one.plan.passes[0].precision for one in report.trials[1:]]
    assert precisions[-1] == "int8" and "float32" in precisions
    assert all(one.metric == 1.0 for one in report.trials)


def test_the_whole_sample_calibrates_and_the_batch_is_timed(winning):
    model, x = classifier(), numbers(4)
    fast = accelerate(model, x, FAKE, y=labelled(model, x), batch_size=5, **ASKED)
    assert fast.plan.passes == tuple(FAKE)
    (eight_bits,) = FakeEngine.calibrated
    np.testing.assert_array_equal(eight_bits.inputs[0], x)
    assert set(FakeEngine.sizes) == {5}, "also the last batch of the twelve samples"
    own = [model.predict(x, verbose=0)]
    assert eight_bits.scored(lambda arrays: [model(arrays[0]).numpy()]) == 1.0
    assert eight_bits.score(own, np.arange(COUNT)) == 1.0
    assert eight_bits.score([own[0][3:4]], np.array([3])) == 1.0
    assert len(list(eight_bits.samples())) == COUNT and eight_bits.in_time()


def test_refreshing_quantizes_anew(winning):
    model, x = classifier(), numbers(4)
    fast = accelerate(model, x, FAKE, y=labelled(model, x), **ASKED)
    model.layers[0].kernel.assign_add(np.ones((4, 3)) * [1, 0, 0])
    fast.refresh()
    np.testing.assert_allclose(fast.predict(x, verbose=0), model.predict(x, verbose=0), 1e-5)
    assert len(FakeEngine.calibrated) == 2


def test_what_wins_is_remembered_for_who_allows_it(tmp_path, winning):
    model, x = classifier(), numbers(4)
    usual = {"includes": ["fake_engine"], "cache_dir": tmp_path, "max_tuning_seconds": 1e6}
    accelerate(model, x, y=labelled(model, x), **usual, **ASKED)
    again = accelerate(model, x, y=labelled(model, x), **usual, **ASKED)
    assert again.report.cached
    assert not accelerate(model, x, **usual).report.cached


METRICS = {
    "function": lambda y, p: np.mean(p.argmax(-1) == y),
    "Keras's function": keras.metrics.sparse_categorical_accuracy,
    "Keras's object": keras.metrics.SparseCategoricalAccuracy(),
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_metrics(metric, winning):
    model, x = classifier(), numbers(4)
    FakeEngine.wrong = 1 / COUNT
    fast = accelerate(model, x, FAKE, y=labelled(model, x), metric=metric, **ASKED)
    before, after = (trial.metric for trial in fast.report.trials)
    assert before == 1.0 and after == pytest.approx(1 - 1 / COUNT)


def test_accuracy_of_every_kind_of_labels():
    p = np.array([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    for y in ([1, 0, 0], [[1], [0], [0]], [[0, 1], [1, 0], [1, 0]]):
        assert accuracy(np.array(y), p) == pytest.approx(2 / 3)
    for y in ([1, 0, 0], [[1], [0], [0]]):
        assert accuracy(np.array(y), p[:, 1:]) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="one output"):
        accuracy(np.array([1]), [p, p])


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (
            {"allow": ("int4",)},
            ValueError,
            "`allow` must have no name but 'int8'. Received: 'int4'",
        ),
        ({"allow": "int8"}, TypeError, "`allow` must be a tuple of names"),
        ({"allow": 8}, TypeError, "`allow` must be a tuple of names"),
        ({"allow": ("int8",)}, ValueError, "needs `y`, the labels of `sample`"),
        ({"y": [1, 2]}, ValueError, "a label for each of the 12 samples"),
        ({"y": np.zeros(COUNT), "max_drop": -1}, ValueError, "`max_drop` must be at least 0"),
        ({"y": np.zeros(COUNT), "max_drop": "a"}, TypeError, "`max_drop` must be a number"),
        ({"y": np.zeros(COUNT), "metric": "f1"}, ValueError, "`metric` must be 'accuracy'"),
        ({"y": ["a"] * COUNT}, ValueError, "`metric` can't be computed"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be None or a positive integer"),
    ],
)
def test_what_breaks_a_rule_is_told(arguments, error, told):
    with pytest.raises(error) as raised:
        accelerate(classifier(), numbers(4), "baseline", **arguments)
    assert told in str(raised.value)


def test_a_missing_quantizer_is_named(winning, monkeypatch):
    monkeypatch.setattr(FakeEngine, "quantizer", "no_such_module_anywhere")
    model, x = classifier(), numbers(4)
    fast = accelerate(model, x, FAKE, y=labelled(model, x), **ASKED)
    trial = fast.report.trials[1]
    assert trial.refusal is Refusal.MISSING and "tfaccel[fake,fake8]" in trial.reason


# The engines that there are.


@pytest.fixture(params=ENGINES, ids=lambda kind: kind.name)
def engine(request):
    for needed in (request.param.module, request.param.quantizer):
        pytest.importorskip(needed, reason=f"the extra {request.param.extra} is not installed")
    return request.param(precision="int8")


def test_an_engine_in_8_bits(engine, winning, tmp_path, capfd):
    model, x = image_model(), np.concatenate([numbers(8, 8, 3, seed=s) for s in range(4)])
    y = labelled(model, x)
    fast = accelerate(model, x, [engine], y=y, allow=("int8",), max_drop=0.2)
    assert fast.plan.passes == (engine,), fast.report.reasons()
    found = fast.predict(x, batch_size=5, verbose=0)
    expected = model.predict(x, verbose=0)
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert 1e-4 < error < 0.2, "it is not computed in 8 bits" if error <= 1e-4 else "too far"
    assert fast.report.trials[1].metric >= 0.8
    fast.save(tmp_path / "saved")
    loaded = tfaccel.load(tmp_path / "saved").predict(x, batch_size=5, verbose=0)
    np.testing.assert_allclose(loaded, found, 1e-3, 1e-3)
    assert "nncf" not in capfd.readouterr().out.lower()


class Wide(layers.Layer):
    """Numbers of which some are far larger than those that count."""

    def call(self, inputs):
        large = keras.ops.concatenate([1e4 * inputs[..., :1], inputs[..., 1:]], axis=-1)
        return large


def sensitive_model():
    """One product for which 8 bits are far too few, among others for which they do."""
    inputs = keras.Input((8,))
    x = layers.Dense(16, activation="tanh")(inputs)
    x = layers.Dense(8)(x)
    x = Wide()(x)
    head = layers.Dense(4, name="head")
    model = keras.Model(inputs, head(x))
    kernel = head.kernel.numpy()
    kernel[0] = 0.0
    head.kernel.assign(kernel)
    return model


def test_what_loses_too_much_stays_in_float(engine, winning):
    model, x = sensitive_model(), np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    y = labelled(model, x)
    fast = accelerate(model, x, [engine], y=y, allow=("int8",), max_drop=0.05)
    assert fast.plan.passes == (engine,), fast.report.reasons()
    assert fast.report.trials[1].metric >= 0.95
    assert fast.report.trials[1].drift.output > 1e-5, "not everything is in float"


def test_the_search_for_what_stays_in_float_ends_with_its_time(engine, winning):
    model, x = sensitive_model(), np.random.default_rng(0).normal(size=(64, 8)).astype("float32")
    arguments = {"y": labelled(model, x), "allow": ("int8",), "max_drop": 0.05}
    fast = accelerate(model, x, [engine], max_tuning_seconds=0, **arguments)
    assert fast.report.trials[1].outcome is tfaccel.Outcome.UNFAITHFUL, fast.report.reasons()


def test_models_that_keras_quantized_are_served(winning):
    model, x = image_model(), numbers(8, 8, 3)
    model.quantize("int8")
    for plan in (["frozen_weights"], ["fake_engine"]):
        fast = accelerate(model, x, plan)
        assert not fast.plan.is_baseline, fast.report.reasons()
        np.testing.assert_allclose(
            fast.predict(x, verbose=0), model.predict(x, verbose=0), 1e-4, 1e-4
        )


@pytest.mark.parametrize("kind", ENGINES, ids=lambda kind: kind.name)
def test_engines_serve_what_keras_quantized(kind, winning):
    pytest.importorskip(kind.module, reason=f"the extra {kind.extra} is not installed")
    model, x = image_model(), numbers(8, 8, 3)
    model.quantize("int8")
    fast = accelerate(model, x, [kind.name])
    assert fast.plan.names == (kind.name,), fast.report.reasons()
    np.testing.assert_allclose(fast.predict(x, verbose=0), model.predict(x, verbose=0), 1e-2, 1e-2)


def test_a_precision_survives_json():
    item = FakeEngine(precision="int8", hint="throughput")
    assert FakeEngine(**json.loads(json.dumps(item.to_config()))) == item
