"""prepare: the same samples in the same order, in whatever layout."""

import dataclasses
import threading

import keras
import numpy as np
import pytest
import rich.console
import tensorflow as tf
from clocks import FakeClock
from crossed import with_slow

from tfaccel.data import _pipeline, prepare
from tfaccel.data._measure import Timings, measure
from tfaccel.data._pipeline import Layout, Pipeline
from tfaccel.data._sources import Arrays
from tfaccel.data.rules import Rules

LAYOUTS = [
    Layout(),
    Layout(parallel=True),
    Layout(cached=True),
    Layout(parallel=True, cached=True, private_threads=2),
]


def listed(dataset):
    return [tf.nest.map_structure(lambda t: t.numpy().tolist(), batch) for batch in dataset]


@pytest.fixture
def arrays(rng):
    return {"a": rng.normal(size=(23, 3)), "b": rng.normal(size=23)}, np.arange(23), np.ones(23)


def plain(data, batch_size, **batching):
    return tf.data.Dataset.from_tensor_slices(data).batch(batch_size, **batching)


@pytest.mark.parametrize("remainder", [False, True])
def test_the_same_batches_as_plain_tf_data(arrays, remainder):
    wanted = listed(plain(arrays, 5, drop_remainder=remainder))
    samples = tf.data.Dataset.from_tensor_slices(arrays)
    options = {"drop_remainder": remainder, "measure_seconds": 0.05}
    assert listed(prepare(arrays, 5, **options)) == wanted
    assert listed(prepare(samples, 5, **options)) == wanted
    if not remainder:
        assert listed(prepare(samples.batch(5), measure_seconds=0.05)) == wanted


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind", ["arrays", "dataset"])
def test_the_order_is_the_same_in_every_layout(arrays, layout, kind):
    data = Arrays.of(arrays) if kind == "arrays" else tf.data.Dataset.from_tensor_slices(arrays)

    def mapped(x, y, weight):
        return x["a"] * 2, y, weight

    asked = Pipeline(data, 4, map=mapped, augment=lambda x, y, w: (x + 1, y, w), shuffle=23, seed=7)
    keras.utils.set_random_seed(1)
    wanted = [listed(p) for p in [asked.dataset(Layout())] * 2]
    keras.utils.set_random_seed(1)
    found = [listed(p) for p in [asked.dataset(layout)] * 2]
    assert found == wanted
    order = [label for _, labels, _ in wanted[0] for label in labels]
    assert sorted(order) == list(range(23)) != order
    np.testing.assert_allclose(wanted[0][0][0][0], arrays[0]["a"][order[0]] * 2 + 1)


def test_shuffling_is_plain_shuffling(arrays):
    samples = tf.data.Dataset.from_tensor_slices(arrays[1])
    for data in (samples, arrays[1]):
        wanted = samples.shuffle(23, seed=3).batch(4)
        made = prepare(data, 4, shuffle=True, seed=3, measure_seconds=0.05)
        assert [listed(made) for _ in range(2)] == [listed(wanted) for _ in range(2)]


def test_measuring_uses_nothing_up():
    """A dataset that would be changed by one more iteration is not iterated."""
    passes = []

    def generator():
        passes.append(1)
        yield from range(6)

    for dataset, why in (
        (tf.data.Dataset.range(9).shuffle(9, seed=4), "shuffles anew"),
        (
            tf.data.Dataset.from_generator(generator, output_signature=tf.TensorSpec((), tf.int64)),
            "Python code",
        ),
        (
            tf.data.Dataset.range(9).map(lambda i: i + tf.random.uniform([], 0, 9, tf.int64)),
            "state",
        ),
    ):
        made = prepare(dataset, 2)
        assert why in made.account.summary()
        assert not made.account.layout.cached
    assert not passes
    shuffled = tf.data.Dataset.range(99).shuffle(99, seed=4)
    assert listed(prepare(shuffled, 9)) == listed(
        tf.data.Dataset.range(99).shuffle(99, seed=4).batch(9)
    )


def test_endless_and_unknown_lengths():
    endless = tf.data.Dataset.range(3).repeat()
    assert listed(prepare(endless, 4, measure_seconds=0.05).take(2)) == [[0, 1, 2, 0], [1, 2, 0, 1]]
    some = tf.data.Dataset.range(9).filter(lambda i: i % 2 == 0)
    made = prepare(some, 2, map=lambda i: i * 10, shuffle=3, seed=1, measure_seconds=0.05)
    assert sorted(i for batch in listed(made) for i in batch) == [0, 20, 40, 60, 80]
    assert len(prepare(np.arange(10), 3, measure_seconds=None)) == 4


def test_what_is_on_disk_stays_there(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", np.arange(12.0).reshape(6, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(_pipeline.tf, "gather", None)  # it would need a copy in memory
    made = prepare((mapped, np.arange(6)), 4, measure_seconds=0.05)
    assert made.element_spec[0].shape.as_list() == [None, 2]
    assert listed(made)[1] == ([[8.0, 9.0], [10.0, 11.0]], [4, 5])


def test_fit_evaluate_and_predict_take_it(rng):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x, y = rng.normal(size=(20, 3)), rng.normal(size=(20, 1))
    made = prepare((x, y, np.ones(20)), 8, shuffle=True, measure_seconds=0.05)
    assert len(model.fit(made, epochs=2, verbose=0).history["loss"]) == 2
    model.evaluate(made, verbose=0)
    assert model.predict(prepare(x, 8, measure_seconds=0.05), verbose=0).shape == (20, 1)


class Slow:
    """A map that takes one second of a fake clock a sample."""

    def __init__(self, clock):
        self.clock, self.lock = clock, threading.Lock()

    def __call__(self, x):
        def wait(value):
            with self.lock:
                self.clock.advance(1.0)
            return value

        made = tf.numpy_function(wait, [x], x.dtype)
        made.set_shape(x.shape)
        return made


def test_it_says_what_it_is_bound_by(clock):
    made = prepare(np.zeros((40, 2)), 4, map=Slow(clock), measure_seconds=1000.0, clock=clock)
    timings = made.account.timings
    assert timings.parts == {"read": 0.0, "map": 4.0, "batch": 0.0}
    assert timings.bound_by == "map"
    assert "bound by `map` (4,000 ms in one thread)" in made.account.summary()
    # On this clock the cache gains all; what threads work ahead of it is chance.
    assert made.account.layout.cached is True
    before = clock.now
    listed(made), listed(made)
    assert clock.now - before == 40  # mapped once


def test_augment_is_told_apart_and_never_cached(clock):
    asked = Pipeline(Arrays.of(np.zeros((40, 2))), 4, augment=Slow(clock))
    timings = measure(asked, [Layout()], 1000.0, clock)
    assert timings.bound_by == "augment"
    assert not timings.cache_pays
    before = clock.now
    made = prepare(np.zeros((40, 2)), 4, augment=Slow(clock), clock=clock)
    assert clock.now == before  # Python's own random numbers are not used up
    assert "Python code" in made.account.summary()
    random = prepare(np.zeros(9), 4, augment=lambda x: x + tf.random.uniform([], dtype=x.dtype))
    assert random.account.timings.parts


def test_the_cache_keeps_to_its_bound(clock):
    def cached(**options):
        return prepare(
            np.zeros((40, 2)), 4, map=Slow(clock), measure_seconds=1000.0, clock=clock, **options
        ).account

    needed = 40 * 2 * 8
    assert cached(max_cache_bytes=needed).layout.cached
    small = cached(max_cache_bytes=needed - 1)
    assert not small.layout.cached
    assert "No cache" in small.summary()
    assert cached(cache=True, max_cache_bytes=1).layout.cached
    assert not cached(cache=False).layout.cached


def test_measuring_keeps_to_its_bound(clock):
    prepare(np.zeros((10_000, 1)), 100, map=Slow(clock), measure_seconds=10.0, clock=clock)
    # At least two batches of each: 2 or 3 stages and 3 layouts, thrice.
    assert clock.now < 12_000


def test_a_layout_must_be_clearly_faster():
    simple, parallel, pool = Layout(), Layout(True), Layout(True, private_threads=2)
    layouts = [simple, parallel, pool]
    for seconds, best in (
        ((1.0, 0.95, 0.94), simple),
        ((1.0, 0.5, 0.48), parallel),
        ((1.0, 0.5, 0.4), pool),
        ((1.0, 1.5, 0.8), pool),
        ((1.0, 0.0, 0.8), pool),
    ):
        turns = {
            layout: (each, 2 * each, 3 * each)
            for layout, each in zip(layouts, seconds, strict=True)
        }
        assert Timings(turns=turns).fastest(layouts) == best
    # Twice as fast in two turns, but not in all: it may be chance.
    turns = {simple: (1.0, 1.0, 1.0), parallel: (0.5, 0.5, 1.1)}
    assert Timings(turns=turns).fastest([simple, parallel]) == simple


def test_the_private_pool_is_set():
    dataset = Pipeline(Arrays.of(np.zeros(4)), 2).dataset(Layout(private_threads=3))
    assert dataset.options().threading.private_threadpool_size == 3


def test_the_account_is_shown(arrays):
    made = prepare(arrays[0], 4, map=lambda x: x["a"], measure_seconds=0.05)
    console = rich.console.Console(width=100)
    with console.capture() as captured:
        console.print(made.account)
    text = captured.get()
    for word in ("read", "map", "batch", "all: parallel map", "bound by"):
        assert word in text


# --- validation


def faulty():
    x = np.ones((30, 2), "float32")
    x[4, 1], x[29, 0] = np.nan, np.inf
    y = np.arange(30) % 3
    y[11] = 7
    return x, y


GOOD = [i for i in range(30) if i not in (4, 11, 29)]
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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"data": np.ones(3)}, ValueError, "`batch_size` must be given for arrays"),
        ({"data": np.ones(3), "batch_size": 0}, ValueError, "`batch_size` must be a positive"),
        ({"data": iter([1])}, TypeError, "`data` must be arrays or a tf.data.Dataset"),
        ({"data": np.ones(0), "batch_size": 1}, ValueError, "at least one sample"),
        ({"data": (np.ones(2), np.ones(3)), "batch_size": 1}, ValueError, "same number of samples"),
        ({"data": [[1], [1, 2]], "batch_size": 1}, ValueError, "of one shape and dtype"),
        ({"data": np.ones(3), "batch_size": 1, "validate": "fix"}, ValueError, "`validate` must"),
        ({"data": np.ones(3), "batch_size": 1, "cache": "yes"}, ValueError, "`cache` must"),
        ({"data": np.ones(3), "batch_size": 1, "map": 3}, ValueError, "`map` must be a function"),
        (
            {"data": np.ones(3), "batch_size": 1, "measure_seconds": 0},
            ValueError,
            "`measure_seconds` must be positive",
        ),
        (
            {"data": tf.data.Dataset.range(3).repeat(), "batch_size": 1, "shuffle": True},
            ValueError,
            "`shuffle` must be the size",
        ),
        (
            {"data": np.array([np.nan]), "batch_size": 1, "validate": "drop"},
            ValueError,
            "no sample without a fault",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        prepare(**arguments)


def test_layouts_in_words():
    assert str(Layout()) == "prefetch"
    everything = dataclasses.replace(Layout(), parallel=True, cached=True, private_threads=2)
    assert str(everything) == "parallel map, cache, prefetch, 2 private threads"
