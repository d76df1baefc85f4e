"""find: what is measured, what wins, what is kept on disk."""

import contextlib
import dataclasses
import json

import pytest
import tensorflow as tf
from clocks import FakeClock

from tfaccel import ops
from tfaccel.measure.outcome import Outcome
from tfaccel.measure.timing import Speedup
from tfaccel.ops.kernels import CallSpec, Candidate, Ranking, Store, _registry, measure
from tfaccel.passes.kernels._selection import Selection

SPEC = CallSpec("matmul", "forward", "float32", (4, 3), (3, 2))
SHAPES = [(4, 3), (3, 2)]


@pytest.fixture
def clock():
    """A clock that only kernels move, when they run, by what `costs` says."""
    return FakeClock()


@contextlib.contextmanager
def kernels(clock, **costs):
    """Registered kernels for `matmul`, each of which takes so many seconds."""

    def add(name, seconds, result):
        @ops.register_kernel("matmul", name=name)
        def fn(spec, x, w):
            tf.py_function(lambda: clock.advance(seconds), [], [])
            return result(x, w)

    for name, (seconds, result) in costs.items():
        add(name, seconds, result)
    try:
        yield
    finally:
        for name in costs:
            ops.unregister_kernel("matmul", name)


@pytest.fixture
def only_slow_reference(monkeypatch, clock):
    """TensorFlow's product takes a second, and other kernels of the table refuse."""

    def slowed(kernel):
        def fn(*operands):
            tf.py_function(lambda: clock.advance(1.0), [], [])
            return kernel.fn(*operands)

        return dataclasses.replace(kernel, fn=fn)

    kept = [slowed(k) for k in _registry.KERNELS if (k.op, k.name) == ("matmul", "tensorflow")]
    others = [k for k in _registry.KERNELS if k.op != "matmul"]
    monkeypatch.setattr(_registry, "KERNELS", (*kept, *others))


def verdicts(ranking):
    return {c.kernel: c.verdict for c in ranking.candidates}


def test_the_fastest_faithful_kernel_wins(clock, only_slow_reference):
    def broken(x, w):
        raise ValueError("no such luck\nreally")

    with kernels(
        clock,
        quick=(0.5, tf.matmul),
        quicker=(0.25, tf.matmul),
        slow=(1.2, tf.matmul),
        slower=(9.0, tf.matmul),
        hardly=(0.97, tf.matmul),
        wrong=(0.1, lambda x, w: tf.matmul(x, w) * 1.001),
        broken=(0.1, broken),
    ):
        found = measure(SPEC, clock)
        best = found.best()
        assert (best.kernel, best.seconds) == ("quicker", 0.25)
        assert best.speedup.median == 4.0
        assert found.kernel().name == "quicker"
        assert found.reference_seconds == 1.0
    assert [c.kernel for c in found.candidates][:3] == ["quicker", "quick", "hardly"]
    assert verdicts(found) == {
        "tensorflow": Outcome.BASELINE,
        "quick": Outcome.FASTER,
        "quicker": Outcome.FASTER,
        "slow": Outcome.SLOWER,
        "slower": Outcome.SLOWER,
        "hardly": Outcome.SLOWER,
        "wrong": Outcome.UNFAITHFUL,
        "broken": Outcome.FAILED,
    }
    reasons = {c.kernel: c.reason for c in found.candidates}
    assert "1e-05" in reasons["wrong"] and "no such luck" in reasons["broken"]


def test_what_is_expected_to_lose_against_a_winner_is_left_untried(clock, only_slow_reference):
    """Nothing is known of `unknown`, and `disappointing` is no reason to leave any other out."""
    costs = {"second": 0.4, "first": 0.25, "disappointing": 2.0, "unknown": 0.5}
    expected = {"disappointing": 8.0, "first": 4.5, "second": 3.0, "better": 4.2}
    quick = {name: (seconds, tf.matmul) for name, seconds in costs.items()}
    with kernels(clock, **quick, better=(0.2, tf.matmul)):
        found = measure(SPEC, clock, expected=expected)
    assert [c.kernel for c in found.candidates if c.verdict is Outcome.FASTER] == [
        "better",
        "first",
        "unknown",
    ]
    assert verdicts(found)["disappointing"] is Outcome.SLOWER
    assert verdicts(found)["second"] is Outcome.UNDECIDED
    assert found.is_settled and not found.complete


def test_a_kernel_that_has_gone_is_not_chosen(clock, only_slow_reference):
    with kernels(clock, quick=(0.5, tf.matmul)):
        found = measure(SPEC, clock)
    assert found.best().kernel == "quick"
    assert found.kernel().name == "tensorflow"


def test_the_budget_ends_the_search(clock, only_slow_reference):
    with kernels(clock, quick=(0.5, tf.matmul), other=(0.5, tf.matmul)):
        found = measure(SPEC, clock, deadline=clock() + 4.0)
        assert verdicts(found)["other"] is Outcome.UNDECIDED
        assert not found.complete
        ops.find("matmul", SHAPES, max_seconds=4.0, clock=clock)
        assert not Store.at().path.exists() or "quick" not in Store.at().path.read_text()


def test_what_was_measured_is_measured_once(clock, only_slow_reference, tmp_path):
    with kernels(clock, quick=(0.5, tf.matmul)):
        first = ops.find("matmul", SHAPES, cache_dir=tmp_path, clock=clock)
        spent = clock()
        again = ops.find("matmul", SHAPES, cache_dir=tmp_path, clock=clock)
        assert again is first and clock() == spent
        read = Store(tmp_path).ranking(SPEC)  # as another process would
        assert read == first
        assert read.kernel().name == "quick"
    # Other kernels than those that were measured: once more.
    with kernels(clock, quick=(0.5, tf.matmul), better=(0.1, tf.matmul)):
        now = ops.find("matmul", SHAPES, cache_dir=tmp_path, clock=clock)
        assert now.best().kernel == "better"


def test_two_processes_keep_what_the_other_found(tmp_path):
    a, b = Store(tmp_path), Store(tmp_path)
    other = CallSpec("matmul", "forward", "float32", (9, 3), (3, 2))
    names = [k.name for k in ops.kernels("matmul", "forward")]
    rows = tuple(Candidate(n, Outcome.REFUSED, reason="x") for n in names)
    for store, spec in ((a, SPEC), (b, other)):
        store.add(Ranking(spec, rows))
        store.save()
    both = Store(tmp_path)
    assert both.ranking(SPEC) and both.ranking(other)


def test_unknown_sizes_take_what_was_measured_last(tmp_path):
    store = Store(tmp_path)
    names = [k.name for k in ops.kernels("matmul", "forward")]
    rows = tuple(Candidate(n, Outcome.REFUSED) for n in names)
    known = [CallSpec("matmul", "forward", "float32", (n, 3), (3, 2)) for n in (4, 8)]
    for spec in (*known, known[0]):
        store.add(Ranking(spec, rows))
    unknown = CallSpec("matmul", "forward", "float32", (None, 3), (3, 2))
    assert store.ranking(unknown).spec == known[0]
    assert store.ranking(known[1]).spec == known[1]
    assert store.ranking(CallSpec("matmul", "forward", "float32", (None, 4), (4, 2))) is None
    assert store.ranking(unknown.along("weight_gradient")) is None


@pytest.mark.parametrize("text", ["", "{}", "[1]", json.dumps({"schema": 0, "rankings": []})])
def test_a_broken_file_is_ignored(tmp_path, text):
    path = Store(tmp_path).path
    path.write_text(text)
    with pytest.warns(UserWarning, match="tfaccel ignores .*kernels-"):
        store = Store(tmp_path)
    assert store.ranking(SPEC) is None


@pytest.mark.filterwarnings("ignore:tfaccel ignores")
def test_a_folder_that_can_not_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "other")
    store.path = tmp_path / "file" / "x.json"
    with pytest.warns(UserWarning, match="could not keep its kernels' times"):
        store.save()


def test_a_ranking_travels_and_prints():
    rows = (
        Candidate("tensorflow", Outcome.BASELINE, 2e-3, Speedup()),
        Candidate("xla", Outcome.FASTER, 1e-3, Speedup(2.0, 1.9, 2.1, 6), 1e-7),
        Candidate("in_float32", Outcome.REFUSED, reason="it computes in float32 already"),
        Candidate("in_bfloat16", Outcome.FASTER, 1e-4, Speedup(9.0, 8, 10, 6), 1e-3, "", True),
    )
    ranking = Ranking(SPEC, rows)
    assert Ranking.from_dict(json.loads(json.dumps(ranking.to_dict()))) == ranking
    text = ranking.to_markdown()
    assert text.startswith("matmul 4x3 * 3x2, float32: forward")
    assert "| xla | 1.00 ms | 2.00x [1.90-2.10] | 1e-07 | faster |  |" in text
    # Fewer bits only where they were asked for.
    assert ranking.best().kernel == "xla"
    assert ranking.best(reduced=True).kernel == "in_bfloat16"


@pytest.mark.parametrize(("gain", "best"), [(2.1, "matmul_1x1"), (2.3, "xla")])
def test_what_xla_compiles_must_be_clearly_ahead(gain, best):
    spec = CallSpec("conv2d", "forward", "float32", (1, 1, 1, 3), (1, 1, 3, 2), (1, 1))
    rows = tuple(
        Candidate(name, Outcome.FASTER, 1e-3, Speedup(median, median, median, 6))
        for name, median in (("matmul_1x1", 2.0), ("xla", gain))
    )
    ranking = Ranking(spec, rows)
    assert ranking.candidates[0].kernel == "xla"
    assert ranking.best().kernel == best


def test_what_xla_can_not_compile_is_used_only_where_it_need_not():
    rows = tuple(
        Candidate(name, Outcome.FASTER, 1e-3, Speedup(gain, gain, gain, 6))
        for name, gain in (("xla", 2.0), ("onednn", 3.0))
    )
    ranking = Ranking(SPEC, rows)
    assert ranking.kernel().name == "xla"
    assert ranking.kernel(in_xla=False).name == "onednn"


def test_what_xla_compiles_is_not_for_batches_of_many_sizes():
    speedup = Speedup(2.0, 2.0, 2.0, 6)
    ranking = Ranking(SPEC, (Candidate("xla", Outcome.FASTER, 1e-3, speedup),))
    assert ranking.kernel(in_xla=False).name == "xla"
    assert ranking.kernel(in_xla=False, compiled=False).name == "tensorflow"
    rows = tuple(
        Candidate(
            kernel.name, Outcome.FASTER if kernel.name == "xla" else Outcome.SLOWER, 1e-3, speedup
        )
        for kernel in _registry.kernels("matmul", "forward")
    )
    Store.at().add(Ranking(SPEC, rows))
    selection = Selection()
    assert selection.wanted("dense", [SPEC]) and not selection.wanted("dense", [SPEC], False)


@pytest.mark.parametrize("direction", ["forward", "input_gradient", "weight_gradient"])
def test_a_real_measurement(direction):
    found = ops.find(
        "conv2d", [(2, 6, 6, 3), (3, 3, 3, 4)], direction=direction, strides=2, padding="same"
    )
    seen = verdicts(found)
    assert seen["tensorflow"] is Outcome.BASELINE
    assert seen["matmul_1x1"] is Outcome.REFUSED
    assert seen["im2col"] in (Outcome.FASTER, Outcome.SLOWER)
    assert not {Outcome.FAILED, Outcome.UNFAITHFUL} & set(seen.values()), found.to_markdown()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("conv5d", SHAPES), ValueError, "`op` must be one of"),
        (("matmul", (4, 3)), TypeError, "shape of `a` must be a tuple. Received: 4"),
        (("matmul", [(4, 3)]), TypeError, "`shapes` must be the two operands' shapes"),
        (("matmul", [(None, 3), (3, 2)]), ValueError, "must be known to be measured"),
        (("matmul", SHAPES, "int32"), ValueError, "`dtype` must be one of"),
        (("matmul", SHAPES, "float32", "back"), ValueError, "`direction` must be one of"),
    ],
)
def test_what_can_not_be_found(arguments, error, message):
    with pytest.raises(error, match=message):
        ops.find(*arguments)


def test_nothing_is_timed_inside_a_function():
    @tf.function
    def step():
        ops.find("matmul", SHAPES)

    with pytest.raises(RuntimeError, match="can't be called inside a tf.function"):
        step()
    with pytest.raises(ValueError, match="matmul takes no strides"):
        ops.find("matmul", SHAPES, strides=2)
