"""Data that is looked at as it passes: what is dropped, reported or raised."""

import numpy as np
import pytest
import tensorflow as tf
from clocks import FakeClock
from crossed import with_slow
from prepared import GOOD, listed

from tfaccel.data import prepare
from tfaccel.data.rules import Rules


def faulty():
    x = np.ones((30, 2), "float32")
    x[4, 1], x[29, 0] = np.nan, np.inf
    y = np.arange(30) % 3
    y[11] = 7
    return x, y


RULES = Rules(classes=3)


def numbered(data):
    """Each sample with its number, to see which are left."""
    return {"x": data[0], "i": np.arange(30)}, data[1]


def forms(data):
    samples = tf.data.Dataset.from_tensor_slices(data)
    return {
        "arrays": (data, 4, {}),
        "mapped arrays": (data, 4, {"map": lambda x, y: (x, y)}),
        "samples": (samples, 4, {}),
        "batches": (samples.batch(7), None, {}),
        "unknown length": (samples.filter(lambda *_: True), 4, {}),
    }


FORMS = forms(([1], [2])).keys()


@pytest.mark.parametrize("form", with_slow(FORMS, ["mapped arrays", "samples"]))
def test_drop_leaves_out_what_is_faulty_and_tells(form):
    data, batch_size, options = forms(numbered(faulty()))[form]
    with pytest.warns(UserWarning, match="tfaccel.data: .*fault"):
        made = prepare(
            data, batch_size, validate="drop", rules=RULES, measure_seconds=0.05, **options
        )
        for _ in range(2):  # in each epoch
            assert [i for x, _ in listed(made) for i in x["i"]] == GOOD
    found = made.findings
    assert found.counts == {"nan": 1, "inf": 1, "label": 1}
    assert found.indices == (4, 11, 29)
    assert found.samples == 30
    assert found.dropped == 3
    assert {fault.component for fault in found.faults} == {"x['x']", "y"}


@pytest.mark.parametrize("form", with_slow(FORMS, ["arrays", "batches", "unknown length"]))
def test_report_passes_everything_on_and_tells(form):
    data, batch_size, options = forms(numbered(faulty()))[form]
    with pytest.warns(UserWarning, match="tfaccel.data: .*fault"):
        made = prepare(
            data, batch_size, validate=True, rules=RULES, measure_seconds=0.05, **options
        )
        assert [i for x, _ in listed(made) for i in x["i"]] == list(range(30))
    assert made.findings.indices == (4, 11, 29)
    assert made.findings.dropped == 0


@pytest.mark.parametrize("form", FORMS)
def test_good_data_passes_in_silence(form, recwarn):
    data, batch_size, options = forms((np.ones((30, 2)), np.zeros(30)))[form]
    made = prepare(data, batch_size, validate="drop", rules=RULES, measure_seconds=0.05, **options)
    assert sum(len(y) for _, y in listed(made)) == 30
    assert made.findings.ok and made.findings.samples == 30
    assert not [w for w in recwarn if "tfaccel" in str(w.message)]


def test_without_validation_nothing_is_found():
    made = prepare(np.array([np.nan]), 1, measure_seconds=None)
    assert made.findings.ok and made.findings.samples == 0


def test_samples_that_can_t_be_mapped_are_dropped_with_the_reason(tmp_path):
    names = np.array([str(tmp_path / f"{i}.txt") for i in range(8)])
    for name in names[[0, 1, 3, 4, 6]]:
        tf.io.write_file(name, name)
    with pytest.warns(UserWarning, match="3 unreadable"):
        made = prepare(
            (names, np.arange(8)),
            2,
            map=lambda name, y: (tf.io.read_file(name), y),
            validate="drop",
            shuffle=True,
            measure_seconds=0.05,
        )
    assert sorted(y for _, ys in listed(made) for y in ys) == [0, 1, 3, 4, 6]
    assert made.findings.indices == (2, 5, 7)
    assert "No such file" in made.findings.faults[0].reason
    assert len(made) == 3


def test_an_error_in_a_dataset_is_raised_as_before():
    dataset = tf.data.Dataset.range(4).map(
        lambda i: tf.debugging.check_numerics(1.0 / tf.cast(i - 2, tf.float32), "i")
    )
    made = prepare(dataset, 1, validate="drop")
    with pytest.raises(tf.errors.InvalidArgumentError):
        listed(made)


def test_empty_batches_and_other_lengths_are_dropped():
    def generator():
        yield np.ones(3), np.ones(3)
        yield np.ones(0), np.ones(0)
        yield np.ones(2), np.ones(4)
        yield np.ones(2), np.ones(2)

    spec = tf.TensorSpec((None,), tf.float64)
    dataset = tf.data.Dataset.from_generator(generator, output_signature=(spec, spec))
    with pytest.warns(UserWarning, match="left out"):
        made = prepare(dataset, validate="drop")
        assert [len(x) for x, _ in listed(made)] == [3, 2]
    assert [(f.kind.value, f.batch) for f in made.findings.faults] == [("empty", 1), ("shape", 2)]


def test_time_for_looking_is_bounded_and_told():
    made = prepare(
        np.arange(100.0),
        10,
        map=lambda x: x,
        validate="drop",
        max_check_seconds=20,
        measure_seconds=None,
        clock=FakeClock(step=1.0),
    )
    assert made.findings.samples < 100
    assert "`max_seconds=20` were spent" in made.findings.summary()
    assert sum(map(len, listed(made))) == 100


def test_ragged_tensors_are_not_looked_at_as_they_pass_and_that_is_said():
    ragged = tf.data.Dataset.from_tensor_slices(tf.ragged.constant([[1.0], [2.0, 3.0]])).batch(2)
    made = prepare(ragged, validate=True)
    assert "x, a Ragged" in made.findings.not_looked_at[0]
    with pytest.raises(ValueError, match='`validate="drop"` needs dense tensors'):
        prepare(ragged, validate="drop")


def test_the_screen_agrees_with_check(rng):
    """What the graph suspects is never less than what NumPy finds."""
    for seed in range(3):
        random = np.random.default_rng(seed)
        x = random.normal(size=(40, 3, 2)).astype("float32")
        x[random.random(x.shape) < 0.01] = np.nan
        y = random.integers(-1, 5, 40)
        one_hot = np.eye(4)[random.integers(0, 4, 40)] * random.choice([1, 2], (40, 1))
        weight = random.choice([-1.0, 0.0, 1.0, np.inf], 40)
        data = x, {"y": y, "z": one_hot}, weight
        rules = Rules(classes=4, value_range=(-2, 2), shape=(None, 2))
        from_arrays = prepare_quietly(data, 8, rules)
        for batched in (False, True):
            samples = tf.data.Dataset.from_tensor_slices(data)
            made = samples.batch(7) if batched else samples
            passed = prepare_quietly(made, None if batched else 8, rules)
            assert places(passed) == places(from_arrays)


def prepare_quietly(data, batch_size, rules):
    with pytest.warns(UserWarning):
        made = prepare(data, batch_size, validate=True, rules=rules, measure_seconds=None)
        for _ in made:
            pass
    return made


def places(made):
    return {(f.index, f.component, f.kind) for f in made.findings.faults}
