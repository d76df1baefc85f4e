"""check on arrays, datasets and whatever gives batches."""

import io
import itertools
import json

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from clocks import FakeClock

from tfaccel.data import Fault, FaultKind, Findings, Rules, check

# Where the faults of `bad_arrays` are, by kind, of 60 samples.
PLANTED = {
    ("nan", "x['a']", 3),
    ("inf", "x['a']", 59),
    ("range", "x['a']", 20),
    ("nan", "x['b']", 0),
    ("label", "y", 7),
    ("label", "y", 8),
    ("nan", "sample_weight", 30),
    ("range", "sample_weight", 31),
}
RULES = Rules(shape={"a": (4, 2)}, value_range={"a": (-9, 9)}, classes=5)


def bad_arrays(rng):
    a = rng.uniform(-1, 1, (60, 4, 2)).astype("float32")
    b = rng.uniform(-100, 100, (60, 3))
    y, weight = rng.integers(0, 5, 60), np.ones(60, "float32")
    a[3, 1, 1], a[59, 0, 0], a[20, 3, 0], b[0, 2] = np.nan, -np.inf, 9.5, np.nan
    y[7], y[8], weight[30], weight[31] = 5, -1, np.nan, -0.5
    return {"a": a, "b": b}, y, weight


def seen(findings):
    return {(f.kind.value, f.component, f.index) for f in findings.faults}


def datasets(data):
    samples = tf.data.Dataset.from_tensor_slices(data)
    return {
        "arrays": data,
        "samples": samples,
        "batches": samples.batch(7),
        "equal batches": samples.batch(6, drop_remainder=True),
        "unknown length": samples.filter(lambda *_: True).batch(8),
        "iterable": [next(iter(samples.batch(60)))],
        "generator": (batch for batch in samples.batch(11).as_numpy_iterator()),
    }


@pytest.mark.parametrize("form", datasets(([1], [2], [3])).keys())
def test_every_planted_fault_is_found_in_every_form(rng, form):
    findings = check(datasets(bad_arrays(rng))[form], RULES)
    assert seen(findings) == PLANTED, findings.to_markdown()
    assert findings.samples == 60
    assert findings.is_complete


def test_good_data_has_no_fault(rng):
    x, y = rng.normal(size=(40, 3)), rng.integers(0, 3, 40)
    for data in (x, (x, y), (x, y, np.ones(40)), {"a": x, "b": x > 0}, [1.0, 2.0], (x, None)):
        assert check(data, Rules(classes=3)).ok


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "complex64"])
def test_every_dtype_of_numbers(dtype):
    x = np.ones((9, 2), "complex64" if dtype == "complex64" else "float32")
    x[4, 1], x[5, 0] = np.nan, np.inf
    findings = check(tf.cast(x, dtype))
    assert seen(findings) == {("nan", "x", 4), ("inf", "x", 5)}


def test_fuzzed_against_the_plain_reference(rng):
    for _ in range(20):
        shape = rng.integers(1, 6, rng.integers(1, 4))
        x = rng.normal(size=(rng.integers(1, 50), *shape)).astype("float32")
        x[rng.random(x.shape) < 0.02] = np.nan
        x[rng.random(x.shape) < 0.02] = np.inf
        flat = x.reshape(len(x), -1)
        low, high = sorted(rng.normal(size=2))
        wanted = {("nan", i) for i, row in enumerate(flat) if any(np.isnan(v) for v in row)}
        wanted |= {("inf", i) for i, row in enumerate(flat) if any(np.isinf(v) for v in row)}
        wanted |= {
            ("range", i)
            for i, row in enumerate(flat)
            if any(np.isfinite(v) and not low <= v <= high for v in row)
        }
        found = check(x, Rules(value_range=(low, high)))
        assert {(f.kind.value, f.index) for f in found.faults} == wanted


@pytest.mark.parametrize(
    ("labels", "bad"),
    [
        ([0, 2, 3, -1], {2, 3}),
        ([0.0, 1.5, 2.0, np.nan], {1, 3}),
        ([[0], [1], [2], [9]], {3}),
        ([[1, 0, 0], [0, 1, 0], [0, 0, 2], [-0.1, 1, 0]], {2, 3}),
        ([[0, 1], [2, 2], [3, 0], [0, 0]], {2}),
        ([True, False, True, True], set()),
    ],
)
def test_labels(labels, bad):
    labels = np.array(labels)
    assert set(check((np.zeros(4), labels), Rules(classes=3)).indices) == bad


def test_shapes_and_dtypes(rng):
    x = rng.normal(size=(4, 5))
    wrong = check(x, Rules(shape=(None, 3), dtype="float32"))
    assert wrong.counts == {"dtype": 1, "shape": 4}
    assert "dtype float64 where float32 is asked for" in wrong.faults[0].reason
    mixed = check(
        [np.zeros((2, 2)), np.zeros((2, 3)), np.zeros((2, 2)), "word", [[1, np.nan], [2, 3]]]
    )
    assert seen(mixed) == {("shape", "x", 1), ("dtype", "x", 3), ("nan", "x", 4)}


def test_ragged_and_sparse():
    ragged = tf.ragged.constant([[[1.0], []], [], [[2.0, np.nan]], [[np.inf]]])
    sparse = tf.sparse.from_dense([[0.0, 1.0], [0, 0], [np.nan, 0], [0, np.inf]])
    for data in (ragged, sparse, [ragged], (sparse, np.ones(4))):
        assert seen(check(data)) == {("nan", "x", 2), ("inf", "x", 3)}


def test_empty_things():
    x = np.zeros((3, 2))
    batches = check(iter([(x, x), (x[:0], x[:0]), (x, x[:2])]))
    assert [(f.kind.value, f.batch) for f in batches.faults] == [("empty", 1), ("shape", 2)]
    for nothing in (x[:0], tf.data.Dataset.from_tensor_slices(x).take(0), iter([])):
        assert check(nothing).counts == {"empty": 1}
    assert check(np.zeros((2, 0))).counts == {"empty": 2}
    assert check((x, x[:2])).counts == {"shape": 1}


def test_elements_that_can_t_be_read_are_named_and_the_rest_is_read(tmp_path):
    names = [str(tmp_path / f"{i}") for i in range(5)]
    for name in [*names[:2], *names[3:]]:
        tf.io.write_file(name, "x")
    samples = tf.data.Dataset.from_tensor_slices(names).map(tf.io.read_file)
    found = check(samples)
    assert [(f.kind.value, f.index) for f in found.faults] == [("unreadable", 2)]
    assert "NotFoundError" in found.faults[0].reason
    assert "No such file" in found.faults[0].reason
    assert found.samples == 4
    assert [f.batch for f in check(samples.batch(2)).faults] == [1]


def test_a_generator_that_fails():
    def generator():
        yield np.zeros((2, 2))
        raise RuntimeError("the disk is gone")

    found = check(generator())
    assert "RuntimeError: the disk is gone" in found.faults[0].reason
    assert found.samples == 2


def test_an_iterator_that_only_fails_comes_to_an_end():
    class Failing:
        def __iter__(self):
            return self

        def __next__(self):
            raise OSError("no")

    found = check(Failing())
    assert "100 errors in a row" in found.not_looked_at[0]


def test_a_py_dataset():
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return np.full((3, 2), np.nan if index == 2 else 1.0), np.zeros(3)

    assert {(f.index, f.batch) for f in check(Batches()).faults} == {(6, 2), (7, 2), (8, 2)}


def test_bounds_are_kept_and_told(rng):
    x = rng.normal(size=(1000, 3))
    x[-1] = np.nan
    some = check(x, max_samples=100)
    assert (some.samples, some.total, some.indices) == (100, 1000, (999,))  # spread to the end
    assert "900 of 1,000 samples" in some.summary()
    endless = tf.data.Dataset.from_tensor_slices(x).repeat().batch(10)
    assert check(endless, max_samples=95).samples == 100
    clock = FakeClock(step=1.0)
    told = check(endless, max_seconds=10, clock=clock)
    assert told.samples == 90 and clock.now < 15
    assert "after the first 90 samples (`max_seconds=10`)" in told.summary()
    assert check(tf.data.Dataset.from_tensor_slices(x).batch(10), max_samples=1000).is_complete


def test_endless_data_needs_a_bound():
    with pytest.raises(ValueError, match="`max_samples` or `max_seconds` must be given"):
        check(tf.data.Dataset.range(3).repeat(), max_seconds=None)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": 3}, TypeError, "`data` must be arrays.*Received: int"),
        ({"data": [1.0], "max_samples": 0}, ValueError, "`max_samples` must be positive"),
        ({"data": [1.0], "max_seconds": "soon"}, ValueError, "`max_seconds` must be positive"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        check(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 0}, "`classes` must be a positive whole number. Received: 0"),
        ({"shape": 3}, "`shape` must be sizes"),
        ({"shape": {"a": (-1,)}}, "`shape` must be sizes"),
        ({"value_range": (1, 0)}, "`value_range` must not end before it begins"),
        ({"value_range": 5}, "`value_range` must be the least and the greatest"),
        ({"dtype": "floaty"}, "`dtype` must be the name of a dtype"),
        ({"sample_rate": 8000.5}, "`sample_rate` must be a positive whole number"),
        ({"max_pixels": True}, "`max_pixels` must be a positive whole number"),
    ],
)
def test_wrong_rules(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rules(**arguments)


def test_findings_as_table_json_and_markdown(rng):
    findings = check(bad_arrays(rng), RULES)
    assert Findings.from_json(findings.to_json()) == findings
    data = json.loads(findings.to_json())
    assert data["ok"] is False and data["faults"][0]["index"] == 3
    assert "| sample 3, x['a'] | nan | NaN at [1, 1] |" in findings.to_markdown()
    console = rich.console.Console(width=100, record=True, file=io.StringIO())
    console.print(findings)
    text = console.export_text()
    assert "9.5 at [3, 0] is outside -9 to 9" in text
    assert "8 faults (3 nan, 1 inf, 2 range, 2 label)" in text
    with pytest.raises(ValueError, match="not a report of tfaccel.data"):
        Findings.from_json("[]")


def test_more_faults_than_are_listed_are_counted():
    findings = check(np.full((10_500, 1), np.nan))
    assert len(findings.faults) == 10_000
    assert findings.counts == {"nan": 10_500}
    assert "500 of them are counted and not listed" in findings.summary()


def test_a_fault_says_where():
    where = [
        Fault(FaultKind.NAN, "", **place).where
        for place in ({}, {"index": 3}, {"index": 3, "batch": 1, "component": "x"}, {"path": "a"})
    ]
    assert where == ["the data", "sample 3", "sample 3, batch 1, x", "a"]


def test_predictions_are_checked_alike():
    model = keras.Sequential([keras.layers.Dense(2)])
    x = np.ones((6, 3))
    x[4] = np.inf
    assert check(model.predict(x, verbose=0)).indices == (4,)


def test_iterating_stops_where_the_bound_says():
    taken = itertools.count()
    batches = (np.full((2, 1), float(next(taken))) for _ in itertools.count())
    check(batches, max_samples=6)
    assert next(taken) == 3
