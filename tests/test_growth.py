"""Whether memory grows, and why steps are traced again: from scripted readings and batches."""

import json
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from early import built_early

import tfaccel
from tfaccel.profiling import growth
from tfaccel.profiling.causes import Cause, Retraces, cause_of, in_words, leaves_of, remedy
from tfaccel.profiling.growth import FLAT, GROWS, MOST, Growth, Reading, trend
from tfaccel.profiling.key_figures import key_figures
from tfaccel.profiling.records import Records, read_records
from tfaccel.profiling.words import sentence
from tfaccel.system.memory import ROOT, process_bytes

MIB = 2**20
STEPS = list(range(1, 201))


@pytest.fixture
def noise(rng):
    return rng.normal(scale=0.3 * MIB, size=len(STEPS))


class TestTrend:
    def test_a_leak_is_found_with_its_size(self, noise):
        found = trend(STEPS, list(900 * MIB + 0.2 * MIB * np.array(STEPS) + noise))
        assert found.verdict == GROWS
        assert found.bytes_per_step == pytest.approx(0.2 * MIB, rel=0.05)

    def test_a_warm_up_is_none(self, noise):
        found = trend(STEPS, list(500 * MIB + np.minimum(STEPS, 90) * MIB + noise))
        assert found.verdict == FLAT
        assert abs(found.bytes_per_step) < 0.02 * MIB

    def test_a_jump_is_none(self, noise):
        sizes = list(500 * MIB + (np.array(STEPS) > 150) * 64 * MIB + noise)
        assert trend(STEPS, sizes).verdict == FLAT

    def test_memory_that_is_given_back_now_and_then_is_flat(self):
        assert trend(STEPS, [500 * MIB + (s % 20) * 4 * MIB for s in STEPS]).verdict == FLAT

    def test_a_few_bytes_are_noise(self):
        assert trend(STEPS, [500 * MIB + 1000 * s for s in STEPS]).verdict == FLAT

    def test_few_readings_tell_nothing(self):
        found = trend([1, 2, 3], [1 * MIB, 50 * MIB, 99 * MIB])
        assert (found.bytes, found.bytes_per_step, found.verdict) == (99 * MIB, None, None)
        assert trend([], []).bytes is None


class Reader:
    """Memory that grows by so much at each reading's step."""

    def __init__(self, host=0.0, device=None):
        self.step, self.read, self.host, self.device = 0, 0, host, device

    def __call__(self):
        self.read += 1
        device = None if self.device is None else int(100 * MIB + self.device * self.step)
        return Reading(int(900 * MIB + self.host * self.step), device)


def test_a_long_training_is_read_a_bounded_number_of_times():
    reader = Reader(host=0.001 * MIB)
    growing = Growth(reader)
    for reader.step in range(1, 100_001):
        growing.note(reader.step)
    assert reader.read < 10 * MOST
    assert growing.host.bytes_per_step == pytest.approx(0.001 * MIB, rel=0.01)
    assert growing.host.verdict == GROWS
    assert growing.device.bytes is None


def test_the_device_s_memory_has_a_verdict_of_its_own():
    reader = Reader(device=1.0 * MIB)
    growing = Growth(reader)
    for reader.step in STEPS:
        growing.note(reader.step)
    assert (growing.host.verdict, growing.device.verdict) == (FLAT, GROWS)


@pytest.mark.skipif(not (ROOT / "proc/self/status").exists(), reason="no /proc")
def test_the_process_s_memory_is_read():
    before = process_bytes()
    held = np.ones(64 * MIB, np.uint8)
    assert process_bytes() - before > 0.9 * held.nbytes


def test_a_system_that_tells_nothing(tmp_path):
    assert process_bytes(tmp_path) is None


SPEC = {"image": tf.TensorSpec((None, 8)), "n": tf.TensorSpec((), tf.int32)}, tf.TensorSpec(None)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (SPEC, Cause("value")),
        (SPEC[0], Cause("structure", "the batch", "x['image'], x['n'], y", "x['image'], x['n']")),
        (
            (SPEC[0], tf.TensorSpec((None, 1))),
            Cause("shape", "y", "any shape", "(None, 1)"),
        ),
        (
            ({**SPEC[0], "n": np.int64(3)}, SPEC[1]),
            Cause("dtype", "x['n']", "int32", "int64"),
        ),
        (
            ({**SPEC[0], "image": np.zeros((4, 8), "f")}, SPEC[1]),
            Cause("shape", "x['image']", "(None, 8)", "(4, 8)"),
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_what_is_other_is_named(now, expected):
    assert cause_of(leaves_of(SPEC), leaves_of(now)) == expected
    assert in_words(expected.to_dict()) and remedy([expected.to_dict()])


def test_the_first_trace_is_no_retrace():
    assert not cause_of(None, leaves_of(SPEC)).is_retrace
    assert not cause_of(None, leaves_of(SPEC), "plan").is_retrace


def test_the_most_frequent_cause_comes_first():
    found = Retraces()
    causes = [Cause("dtype", "y", "a", "b"), *(Cause("shape", "x", "", str(n)) for n in (1, 2))]
    for cause in causes:
        found.add(cause)
    listed = found.to_list()
    assert [(item["cause"], item["now"], item["times"]) for item in listed] == [
        ("shape", "2", 2),
        ("dtype", "b", 1),
    ]
    assert found.count == 3


def model_of(**compiling):
    keras.utils.set_random_seed(5)
    model = keras.Sequential(
        [keras.Input((None, 4)), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(2)]
    )
    model.compile(**{"optimizer": keras.optimizers.SGD(0.01), "loss": "mse", **compiling})
    return built_early(model)


def data(rows=92, steps=3):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, steps, 4)).astype("float32")
    return {"x": x, "y": x[:, 0, :2], "batch_size": 8, "verbose": 0}


def figure(records, label):
    return {item.label: item for item in key_figures(records)}.get(label)


def test_xla_s_compilations_for_another_shape_are_retraces(tmp_path):
    profiler = tfaccel.ProfilerCallback(tmp_path, verbose=0)
    model_of(jit_compile=True).fit(**data(), callbacks=[profiler])
    summary = profiler.summary()
    assert summary["retraces"] == 1  # the last batch has 4 rows
    (cause,) = summary["retrace_causes"]
    assert cause == {
        "cause": "shape",
        "argument": "x",
        "was": "(8, 3, 4)",
        "now": "(4, 3, 4)",
        "times": 1,
    }
    records = read_records(tmp_path / "profile.jsonl")
    assert [trace["cause"] for trace in records.traces] == ["first", "shape"]
    assert "drop_remainder" in figure(records, "Retraces").note


def test_a_fit_on_other_data_says_why_it_traces(tmp_path):
    model = model_of()
    callbacks = [tfaccel.ProfilerCallback(tmp_path, verbose=0)]
    model.fit(**data(steps=3), callbacks=callbacks)
    model.fit(**data(steps=3), callbacks=callbacks)
    assert callbacks[0].summary()["retraces"] == 0
    model.fit(**data(steps=5), callbacks=callbacks)
    (cause,) = callbacks[0].summary()["retrace_causes"]
    assert (cause["cause"], cause["argument"]) == ("shape", "x")
    assert (cause["was"], cause["now"]) == ("(None, 3, 4)", "(None, 5, 4)")


def test_the_trace_of_a_plan_is_no_retrace(tmp_path):
    profiler = tfaccel.ProfilerCallback(tmp_path, compare_every=2, verbose=0)
    accel = tfaccel.AccelCallback(["fused_optimizer"], verbose=0)
    model_of().fit(**data(), epochs=2, callbacks=[profiler, accel])
    records = read_records(tmp_path / "profile.jsonl")
    assert {trace["cause"] for trace in records.traces} <= {"first", "plan"}
    assert records.traces and profiler.summary()["retraces"] == 0


class Leaking:
    """Memory of a process that grows by a MiB at each reading."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += MIB
        return Reading(900 * MIB + self.now, None)


def test_a_leak_is_told_in_table_file_and_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(growth, "read", Leaking())
    model_of().fit(**data(), epochs=5, callbacks=[tfaccel.ProfilerCallback(tmp_path)])
    said = capsys.readouterr().out
    records = read_records(tmp_path / "profile.jsonl")
    assert records.summary["host_memory"] == GROWS
    assert records.summary["host_growth_bytes_per_step"] == pytest.approx(MIB)
    assert records.summary["host_growth_bytes_per_epoch"] == pytest.approx(12 * MIB)
    assert "grows by 12.0 MiB an epoch" in said
    assert sentence(records.intervals[-1]).endswith("grows by 12.0 MiB an epoch")
    # A run that was stopped has the verdict of its last interval.
    stopped = Records(records.run, records.intervals)
    for found in (records, stopped):
        assert figure(found, "Memory of the process").value == "grows by 12.0 MiB an epoch"


def test_flat_memory_is_told_too(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "read", lambda: Reading(900 * MIB, None))
    model_of().fit(**data(), epochs=3, callbacks=[tfaccel.ProfilerCallback(tmp_path, verbose=0)])
    text = pathlib.Path(tmp_path, "profile.jsonl").read_text("utf-8")
    assert json.loads(text.splitlines()[-1])["host_memory"] == FLAT
    assert figure(read_records(tmp_path / "profile.jsonl"), "Memory of the process").value == FLAT
