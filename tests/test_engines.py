"""Engines in tfaccel.accelerate: what every one must do, by one that TensorFlow runs."""

import dataclasses
import json
import sys
import threading
import warnings
from typing import ClassVar

import inference_models
import keras
import numpy as np
import pytest
import tensorflow as tf
from crossed import with_slow
from fake_engine import FakeEngine, FakeRunner
from inference_models import CASES, COUNT, accelerate, assert_alike, image_model, numbers

import tfaccel
from tfaccel.autotune.report import Report
from tfaccel.core.plan import Plan, make_pass
from tfaccel.core.unsupported import Refusal
from tfaccel.core.workload import Workload
from tfaccel.inference import trials
from tfaccel.inference.engines import ENGINES
from tfaccel.inference.sample import spec_of
from tfaccel.system.device import Device

layers = keras.layers
winning = inference_models.winning
FAKE = ["fake_engine"]
# The names of the cases that no engine takes over; None is one that fails as it is traced.
REFUSED = {
    "stateful": Refusal.STATE,
    "own_step": Refusal.OWN_CODE,
    "double_precision": Refusal.DTYPE,
    "random": None,
}


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.setattr(FakeEngine, "fails", False)
    monkeypatch.setattr(FakeEngine, "sizes", [])


def dense_model(units=2):
    return keras.Sequential([keras.Input((4,)), layers.Dense(units, activation="softmax")])


def workload_of(model, x):
    batch = keras.utils.pack_x_y_sample_weight(tf.convert_to_tensor(x))
    return Workload(model, (batch,), spec_of(batch), training=False)


# The contract.


@pytest.mark.parametrize("kind", [*ENGINES, FakeEngine], ids=lambda kind: kind.name)
def test_an_engine_is_a_pass(kind):
    for item in (kind(), kind(precision=kind.precisions[-1], hint="throughput")):
        assert make_pass(kind.name, json.loads(json.dumps(item.to_config()))) == item
        assert Plan.from_json(Plan((item,)).to_json()) == Plan((item,))
    for precision in kind.precisions[1:]:
        assert kind(precision=precision).compute_dtype(None) == precision
    assert kind().unsupported(Workload(dense_model())).kind is Refusal.TASK
    with pytest.raises(ValueError, match="`precision` must be one of"):
        kind(precision="int3")
    with pytest.raises(ValueError, match="`hint` must be one of"):
        kind(hint="fastest")


@pytest.mark.parametrize("kind", ENGINES, ids=lambda kind: kind.name)
def test_what_is_not_installed_is_named(kind, monkeypatch):
    monkeypatch.setattr(kind, "module", "no_such_module_anywhere")
    model = dense_model()
    fast = accelerate(model, numbers(4), includes=[kind.name])
    (trial,) = fast.report.trials[1:]
    assert trial.refusal is Refusal.MISSING and f"tfaccel[{kind.extra}]" in trial.reason
    assert_alike(model.predict(numbers(4), verbose=0), fast.predict(numbers(4), verbose=0), 0, 0)


def test_nothing_warns_where_no_engine_is_installed(monkeypatch):
    for kind in ENGINES:
        monkeypatch.setattr(kind, "module", "no_such_module_anywhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = accelerate(dense_model(), numbers(4), excludes=["kernels", "xla"])
    assert not [one for one in fast.report.tried() for item in ENGINES if item.name in str(one)]


@pytest.mark.parametrize(
    ("flags", "cores", "count", "aim", "expected"),
    [
        ([], 2, COUNT, "latency", ["float32 latency"]),
        ([], 2, COUNT, "throughput", ["float32 latency", "float32 throughput"]),
        ([], 1, COUNT, "throughput", ["float32 latency"]),
        ([], 2, 1, "throughput", ["float32 latency"]),
        (["amx_bf16"], 2, COUNT, "latency", ["bfloat16 latency", "float32 latency"]),
    ],
)
def test_configurations_follow_the_aim_and_the_chip(flags, cores, count, aim, expected):
    device = Device("CPU", "a chip", cores, frozenset(flags))
    workload = workload_of(dense_model(), numbers(4)[:count])
    workload = dataclasses.replace(workload, device=device, optimize=aim)
    found = FakeEngine().variants(workload)
    assert [f"{one.precision} {one.hint}" for one in found] == expected


def test_a_gpu_keeps_its_model():
    workload = dataclasses.replace(
        workload_of(dense_model(), numbers(4)), device=Device("GPU", "a chip")
    )
    assert FakeEngine().unsupported(workload).kind is Refusal.DEVICE


# As another case is, to an engine; what predicts in other ways is below and in test_inference.py.
LIKE_OTHERS = (
    *("sequential_not_built", "list_of_inputs", "mixed_policy", "stateful", "double_precision"),
    *("shared_and_nested", "several_steps_an_execution"),
)


@pytest.mark.parametrize(
    "case",
    with_slow(CASES, [case for case in CASES if case.name in LIKE_OTHERS]),
    ids=lambda case: case.name,
)
def test_an_engine_serves_every_kind_of_model_or_says_why_not(case, winning):
    model, x = case.make()
    fast = accelerate(model, x, FAKE)
    trial = fast.report.trials[1]
    if case.name in REFUSED:
        assert trial.refusal is REFUSED[case.name] and fast.plan.is_baseline
        return
    assert fast.plan.names == ("fake_engine",), trial.reason
    FakeEngine.sizes.clear()
    expected = model.predict(x, batch_size=5, verbose=0)
    found = fast.predict(x, batch_size=5, verbose=0)
    tolerance = 2e-2 if case.name == "mixed_policy" else 1e-5
    assert_alike(expected, found, tolerance, tolerance)
    assert FakeEngine.sizes == [5, 5, 2]


def test_passes_and_an_engine_together(winning):
    fast = accelerate(image_model(), numbers(8, 8, 3), ["folded_norm", "fake_engine"])
    assert fast.plan.names == ("folded_norm", "fake_engine")


def test_a_search_tries_engines_by_themselves(winning, monkeypatch):
    fast = accelerate(
        image_model(),
        numbers(8, 8, 3),
        includes=["folded_norm", "frozen_weights", "fake_engine"],
        max_tuning_seconds=1e6,
    )
    tried = [trial.plan.names for trial in fast.report.trials]
    assert all(names == ("fake_engine",) for names in tried if "fake_engine" in names)
    assert ("fake_engine",) in tried and ("folded_norm", "frozen_weights") in tried


def test_an_engine_that_is_off_is_not_used(winning):
    fast = accelerate(dense_model(), numbers(4), [FakeEngine(off=0.1)])
    assert fast.plan.is_baseline
    assert fast.report.trials[1].outcome is tfaccel.Outcome.UNFAITHFUL


def test_the_size_of_every_other_batch_is_compared_too(winning, monkeypatch):
    """What serves other sizes than the sample's may be another compiled model."""
    own = FakeRunner.run
    monkeypatch.setattr(
        FakeRunner, "run_any_size", lambda self, arrays: [1.1 * y for y in own(self, arrays)]
    )
    fast = accelerate(dense_model(), numbers(4), FAKE)
    assert fast.report.trials[1].outcome is tfaccel.Outcome.UNFAITHFUL


# Going on without it.


def test_an_engine_that_fails_is_left_with_one_warning(winning):
    model, x = dense_model(), numbers(4)
    fast = accelerate(model, x, FAKE)
    expected = model.predict(x, verbose=0)
    FakeEngine.fails = True
    with pytest.warns(RuntimeWarning, match="fake_engine failed.*has lost its graph") as told:
        found = [fast.predict(x, batch_size=5, verbose=0) for _ in range(2)]
    assert len(told) == 1 and fast.plan.is_baseline
    for one in found:
        assert_alike(expected, one)


def test_what_an_engine_was_not_made_for_goes_to_the_model(winning):
    model = keras.Sequential([keras.Input((None,), dtype="int64"), layers.Embedding(9, 2)])
    x = np.ones((COUNT, 3), "int64")
    fast = accelerate(model, x, FAKE)
    assert fast.plan.names == ("fake_engine",), fast.report.reasons()
    FakeEngine.sizes.clear()
    for other in (np.ones((4, 7), "int64"), np.ones((4, 3), "int32")):
        assert_alike(model.predict(other, verbose=0), fast.predict(other, verbose=0))
    assert FakeEngine.sizes == [4], "open sizes are the engine's, another dtype is the model's"
    assert fast.plan.names == ("fake_engine",)


def test_labels_are_no_inputs(winning):
    model = dense_model()
    data = tf.data.Dataset.from_tensor_slices((numbers(4), np.zeros(COUNT))).batch(5)
    fast = accelerate(model, data, FAKE)
    assert_alike(model.predict(data, verbose=0), fast.predict(data, verbose=0))
    assert FakeEngine.sizes[-3:] == [5, 5, 2]


def test_refreshing_takes_the_present_weights(winning):
    model, x = dense_model(), numbers(4)
    fast = accelerate(model, x, FAKE)
    before = fast.predict(x, verbose=0)
    model.layers[0].kernel.assign_add(np.ones((4, 2)) * [1, 0])
    assert_alike(before, fast.predict(x, verbose=0))
    fast.refresh()
    assert_alike(model.predict(x, verbose=0), fast.predict(x, verbose=0))
    assert fast.plan.names == ("fake_engine",)


def test_eight_threads_get_right_answers(winning):
    model, x = image_model(), numbers(8, 8, 3)
    fast = accelerate(model, x, FAKE)
    check_threads(fast, model, x)


def check_threads(fast, model, x):
    """Each thread has inputs of its own, in batches of its own size."""
    inputs = [np.roll(x, place, axis=0)[place:] for place in range(8)]
    expected = [model.predict(one, verbose=0) for one in inputs]
    wrong = []

    def run(place):
        for _ in range(5):
            found = fast(inputs[place]).numpy()
            if not np.allclose(found, expected[place], rtol=1e-3, atol=1e-4):
                wrong.append(place)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# The table.


def test_the_table_of_predictions(winning):
    fast = accelerate(dense_model(3), numbers(4), FAKE)
    trial = fast.report.trials[1]
    assert trial.top1_agreement == 1.0
    half, most, nearly_all = trial.latency_seconds
    assert 0 < half <= most <= nearly_all
    assert fast.report.trials[0].latency_seconds is not None
    headings, rows = fast.report.table()
    expected = ("plan", "batch", "speedup", "error", "top-1", "p50", "p90", "p99", "set-up")
    told = () if trial.peak_memory_bytes is None else ("memory",)  # Linux tells it
    assert headings == (*expected, *told, "verdict")
    assert rows[1][0] == "fake_engine" and rows[1][-1] == "chosen" and rows[1][4] == "100.0 %"
    assert "| p99 |" in fast.report.to_markdown()
    assert Report.from_json(fast.report.to_json()) == fast.report


@dataclasses.dataclass(frozen=True)
class Large(FakeEngine):
    """An engine that takes memory and holds it."""

    name = "large_engine"
    held: ClassVar[list] = []

    def build(self, *given):
        Large.held.append(np.ones(2**26, np.uint8))
        return super().build(*given)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process's peak")
def test_the_table_tells_what_each_candidate_takes(winning):
    fast = accelerate(dense_model(3), numbers(4), [Large()])
    Large.held.clear()
    baseline, trial = fast.report.trials
    assert baseline.peak_memory_bytes is None
    assert trial.peak_memory_bytes > 0.8 * 2**26
    headings, rows = fast.report.table()
    assert rows[1][headings.index("memory")].endswith("MiB")


def test_memory_that_a_system_does_not_tell_is_left_out(winning, monkeypatch):
    def untold(device):
        raise OSError("no /proc")

    monkeypatch.setattr(trials, "meter_for", untold)
    fast = accelerate(dense_model(3), numbers(4), FAKE)
    assert fast.report.trials[1].peak_memory_bytes is None
    assert "memory" not in fast.report.table()[0]


def test_what_is_no_classifier_has_no_classes(winning):
    fast = accelerate(image_model(), numbers(8, 8, 3), FAKE)
    assert fast.report.trials[1].top1_agreement is None
    assert "top-1" not in fast.report.table()[0]


def test_latency_is_told_from_many_calls(winning, monkeypatch):
    fast = accelerate(dense_model(), numbers(4)[:1], FAKE, optimize="latency")
    assert len(FakeEngine.sizes) >= 100
    assert fast.report.trials[1].latency_seconds[2] > 0


def test_another_aim_is_refused():
    with pytest.raises(ValueError, match="`optimize` must be one of throughput, latency"):
        accelerate(dense_model(), numbers(4), optimize="speed")


def test_what_wins_is_remembered(tmp_path, winning):
    model = dense_model()
    arguments = {"includes": FAKE, "cache_dir": tmp_path, "max_tuning_seconds": 1e6}
    first = accelerate(model, numbers(4), **arguments)
    again = accelerate(model, numbers(4), **arguments)
    assert again.plan == first.plan and again.report.cached
    other = accelerate(model, numbers(4), optimize="latency", **arguments)
    assert not other.report.cached


def test_a_terminal_has_room_for_the_table(winning, capsys):
    fast = accelerate(dense_model(3), numbers(4), FAKE, verbose=1)
    printed = capsys.readouterr().out
    assert "fake_engine: p50 " in printed and "baseline: p50 " in printed
    assert "verdict" in printed and "chosen" in printed
    assert fast.plan.names == ("fake_engine",)


def test_an_engine_is_handed_the_caller_s_own_array(winning, monkeypatch):
    """A copy of an image takes as long as a part of a small model."""
    model, x, handed = dense_model(), numbers(4), []
    fast = accelerate(model, x, FAKE)
    own = FakeRunner.run
    monkeypatch.setattr(
        FakeRunner, "run", lambda self, arrays: (handed.append(arrays[0]), own(self, arrays))[1]
    )
    found = fast(x)
    assert handed[0] is x and isinstance(found, tf.Tensor)
    fast.predict(x, verbose=0)
    assert np.shares_memory(handed[1], x)
    # Keras feeds NumPy's floats in floatx.
    assert_alike(found, fast(x.astype("float64")), 0, 0)
    assert handed[2].dtype == np.float32


def test_an_array_of_another_dtype_is_the_model_s_own(winning):
    model, x = dense_model(), numbers(4)
    fast = accelerate(model, x, FAKE)
    FakeEngine.sizes.clear()
    other = np.ones((4, 4), "int64")
    assert_alike(model.predict(other, verbose=0), fast(other), 1e-6, 1e-6)
    assert not FakeEngine.sizes
