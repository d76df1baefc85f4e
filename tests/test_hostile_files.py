"""Files are data: whatever is in them, they are read rightly or refused with an error of ours."""

import contextlib
import copy
import json
import os
import pathlib
import tempfile
import warnings

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfaccel import Outcome, Plan, Speedup
from tfaccel.autotune import portable
from tfaccel.autotune.expected.evidence import Evidence
from tfaccel.autotune.plan_cache import PlanCache
from tfaccel.autotune.report import Report
from tfaccel.autotune.trial import Trial
from tfaccel.core.machine_class import MachineClass
from tfaccel.inference.saving import manifest
from tfaccel.measure.numerics import Drift
from tfaccel.ops.kernels import CallSpec, Candidate, Ranking, Store, kernels
from tfaccel.passes import XLA, FusedOptimizer, MixedPrecision
from tfaccel.system import json_files, open_folders

QUICK = settings(
    max_examples=120,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
LONG = settings(QUICK, max_examples=5000, derandomize=False)

GAIN = Speedup(2.0, 1.9, 2.1, 6)
PLAN = Plan((FusedOptimizer(), MixedPrecision(), XLA()))
REPORT = Report(
    (
        Trial(Plan(), Outcome.BASELINE, step_seconds=0.2, compile_seconds=1.0),
        Trial(PLAN, Outcome.FASTER, "", 1.0, 0.1, GAIN, Drift(), 3, ("a layer",), 1.5, (1, 2, 3)),
    ),
    PLAN,
    GAIN,
)
MACHINE = MachineClass("CPU", ("avx2",), True)
EVIDENCE = Evidence(MACHINE, {"conv": 0.5}, ("xla",), 2.0, None)
SPEC = CallSpec("matmul", "forward", "float32", (8, 4), (4, 4))
NAMES = [kernel.name for kernel in kernels("matmul", "forward")]
RANKING = Ranking(SPEC, tuple(Candidate(n, Outcome.BASELINE, seconds=1e-3) for n in NAMES), True)
SAVED = {
    "schema": manifest.SCHEMA,
    "model": "m",
    "plan": json.loads(PLAN.to_json()),
    "report": REPORT.to_dict(),
    "x": {"dict": {"a": 0}},
    "y": {"list": [0]},
    "inputs": [{"name": "a", "shape": [None, 3], "dtype": "float32"}],
    "outputs": [{"name": "b", "shape": [None, 3], "dtype": "float32"}],
    "sizes": [[4, 3]],
    "files": {"model.bin": "0" * 64},
}
CACHED = {
    "schema": 1,
    "key": "k",
    "report": REPORT.to_dict(),
    "evidence": [EVIDENCE.to_dict()],
}

numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([10**400, -(10**400), 1e308, 2**63, -1, 0])
)
leaves = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=20), st.just("x" * 100_000), st.just("..")
)
anything = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else ()
    items = enumerate(value) if isinstance(value, list) else items
    for key, inner in items:
        yield from places(inner, (*path, key))


@st.composite
def mutations(draw, whole):
    """A valid file's value with something else, or nothing, in one or two places."""
    found = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 2))):
        *path, last = draw(st.sampled_from([p for p in places(found) if p] or [("new",)]))
        inside = found
        for key in path:
            inside = inside[key]
        if draw(st.booleans()) or isinstance(inside, list):
            inside[last] = draw(anything)
        else:
            inside.pop(last, None)
    return found


def texts(whole):
    """Text of a file: arbitrary JSON, a mutation, or a part of the whole; or no JSON."""
    text = json.dumps(whole)
    return st.one_of(
        mutations(whole).map(json.dumps),
        anything.map(json.dumps),
        st.integers(0, len(text)).map(lambda end: text[:end]),
        st.text(max_size=50),
        st.sampled_from(["[" * 100_000, '{"schema":' * 50_000, '{"schema": ' + "9" * 5000 + "}"]),
    )


def use(found):
    """What is done with what was read."""
    if isinstance(found, Plan):
        assert Plan.from_json(found.to_json()) == found and hash(found) == hash(found)
        return str(found)
    if isinstance(found, Report):
        found.to_markdown(), found.summary(), found.break_even_steps, found.reasons()
        return found.__rich__()
    return found


def read_plan(text):
    return Plan.from_json(text)


def read_report(text):
    return Report.from_json(text)


def read_cached(text):
    with folder_with("k.json", text) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cache = PlanCache(folder)
        for one in cache.evidence():
            one.weight(MACHINE, EVIDENCE.mix)
        portable.contents(folder)
        return cache.load("k")


def read_store(text):
    with folder_with("any", "") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Store(folder).path
        path.write_text(text, "utf-8", "replace")
        return [ranking.to_markdown() for ranking in Store(folder).rankings()]


def read_saved(text):
    with folder_with(manifest.MANIFEST, text) as folder:
        return manifest.Manifest.read(folder)


def read_exported(text):
    with folder_with("cache.json", text) as folder:
        found = portable.contents(folder / "there")
        try:
            portable.import_cache(folder / "cache.json", found)
            return portable.contents(folder / "there").plans
        finally:
            assert {path.name for path in folder.iterdir()} <= {"cache.json", "there"}


@contextlib.contextmanager
def folder_with(name, text):
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(made)
        (folder / name).write_text(text, "utf-8", "replace")
        yield folder


EXPORTED = {
    "schema": portable.SCHEMA,
    "machine": portable.this_machine(),
    "plans": {"k.json": CACHED},
    "rankings": [RANKING.to_dict()],
}
FILES = {
    "plan": (json.loads(PLAN.to_json()), read_plan),
    "report": (REPORT.to_dict(), read_report),
    "cached": (CACHED, read_cached),
    "kernels": ({"schema": 1, "rankings": [RANKING.to_dict()]}, read_store),
    "saved": (SAVED, read_saved),
    "exported": (EXPORTED, read_exported),
}


def is_read_or_refused(read, text):
    try:
        found = read(text)
    except ValueError:
        return
    use(found)


@pytest.mark.parametrize(
    "count", [pytest.param(QUICK, id="few"), pytest.param(LONG, id="many", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_or_refused(kind, count):
    whole, read = FILES[kind]

    @count
    @given(texts(whole))
    def check(text):
        is_read_or_refused(read, text)

    check()


# The schema of kernels' times is their own.
@pytest.mark.parametrize("kind", ["plan", "report", "cached", "exported"])
def test_the_whole_file_is_read(kind):
    whole, read = FILES[kind]
    assert read(json.dumps(whole))


def test_a_pipe_and_a_huge_file_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "k.json")
    monkeypatch.setattr(json_files, "MOST_BYTES", 100)
    (tmp_path / "huge.json").write_text(" " * 101)
    cache = PlanCache(tmp_path)
    for key, why in (("k", "is no file"), ("huge", "more than 100 bytes")):
        with pytest.warns(UserWarning, match=why):
            assert cache.load(key) is None
    assert cache.evidence() == [] and portable.contents(tmp_path).plans == {}


@pytest.mark.parametrize("name", ["..", ".", "/tmp/x.json", "a\\b.json", "k.txt", "k\n.json", ""])
def test_an_imported_plan_has_a_file_s_name(name, tmp_path):
    file = tmp_path / "cache.json"
    file.write_text(json.dumps(EXPORTED | {"plans": {name: CACHED}}))
    with pytest.raises(ValueError, match="no name of a file"):
        portable.import_cache(file, portable.contents(tmp_path / "there"))
    assert not (tmp_path / "there").exists()


def test_a_saved_model_reads_nothing_through_a_link(tmp_path):
    (tmp_path / "secret").write_text("s")
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "model.bin").symlink_to(tmp_path / "secret")
    (folder / manifest.MANIFEST).write_text(json.dumps(SAVED))
    with pytest.raises(ValueError, match="is a link"):
        manifest.Manifest.read(folder)


@pytest.mark.parametrize("mode, told", [(0o700, 0), (0o775, 0), (0o777, 1), (0o1777, 1)])
def test_a_cache_that_others_may_write_to_is_told_once(mode, told, tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(mode)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            PlanCache(folder).load("k")
    assert sum("others may write to" in str(w.message) for w in caught) == told


def test_a_folder_that_is_not_there_is_not_told_of(tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        open_folders.warn_if_open(tmp_path / "none")
    assert not caught
