"""Which settings a sweep tries, and what it keeps for a program."""

import platform

import pytest
import tensorflow as tf

from tfaccel.autotune import portable
from tfaccel.launch import environment
from tfaccel.launch.program import Program
from tfaccel.launch.sweep import kept, sweep
from tfaccel.launch.sweep.child import Children
from tfaccel.launch.sweep.settings import factors, xla_factors
from tfaccel.system import packages


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr(environment, "machine_type", lambda: "x86_64")
    monkeypatch.setattr(platform, "system", lambda: "Linux")


def names(groups):
    return [[setting.name for setting in group] for group in groups]


@pytest.mark.parametrize(
    ("environ", "cores", "is_on", "expected"),
    [
        (
            {},
            4,
            True,
            [["oneDNN off"], ["2 threads within an op"], ["1 op at once", "2 ops at once"]],
        ),
        ({}, 1, False, [["oneDNN on"]]),
        ({"TF_ENABLE_ONEDNN_OPTS": "0", "TF_NUM_INTEROP_THREADS": "4"}, 2, False, None),
    ],
)
def test_what_is_worth_a_trial(x86, tmp_path, environ, cores, is_on, expected):
    found = factors(environ, cores=cores, root=tmp_path, is_onednn_on=is_on)
    assert names(found) == (expected or [["1 thread within an op"]])


def test_a_container_s_share_and_allocators(x86, tmp_path):
    group = tmp_path / "sys" / "fs" / "cgroup"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("250000 100000")
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/\n")
    folder = tmp_path / "usr" / "lib" / "x86_64-linux-gnu"
    folder.mkdir(parents=True)
    for name in ("libjemalloc.so.2", "libtcmalloc.so.4", "libtcmalloc_minimal.so.4"):
        (folder / name).write_text("")
    _, threads, _, allocators = factors({}, cores=8, root=tmp_path, is_onednn_on=True)
    assert [setting.name for setting in threads] == [
        "4 threads within an op",
        "3 threads within an op",
    ]
    assert [setting.environ for setting in allocators] == [
        {"LD_PRELOAD": str(folder / "libjemalloc.so.2")},
        {"LD_PRELOAD": str(folder / "libtcmalloc_minimal.so.4")},
    ]
    assert len(factors({"LD_PRELOAD": ""}, cores=8, root=tmp_path, is_onednn_on=True)) == 3


def test_amd_s_plugin_is_tried_where_it_is_installed(x86, tmp_path):
    (onednn, _, _) = factors({}, cores=4, root=tmp_path, is_onednn_on=True, has_zendnn=True)
    assert onednn[1].environ == {"TF_ENABLE_ZENDNN_OPTS": "1", "TF_ENABLE_ONEDNN_OPTS": "0"}
    environ = {"TF_ENABLE_ONEDNN_OPTS": "1"}
    found = factors(environ, cores=1, root=tmp_path, is_onednn_on=True, has_zendnn=True)
    assert names(found) == []


@pytest.mark.parametrize(("flags", "count"), [("avx2", 2), ("avx2 avx512f", 3)])
def test_xla_s_flags(tmp_path, flags, count):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    ((*found,),) = xla_factors({}, tmp_path / "cpuinfo", "x86_64")
    assert len(found) == count
    assert {tuple(setting.environ) for setting in found} == {("XLA_FLAGS",)}
    assert xla_factors({"XLA_FLAGS": ""}, tmp_path / "cpuinfo", "x86_64") == []


@pytest.mark.parametrize(("compiles", "tried"), [(None, True), (True, True), (False, False)])
def test_xla_s_flags_are_tried_where_xla_compiles(monkeypatch, compiles, tried):
    children = Children(Program("a.py"), {})
    found = []
    for factor in sweep.factors_of(children, {}):
        children.compiles = compiles  # as its turns have told
        found += [name for setting in factor for name in setting.environ]
    assert ("XLA_FLAGS" in found) is tried


def test_no_onednn_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "machine_type", lambda: "aarch64")
    assert names(factors({}, cores=1, root=tmp_path, is_onednn_on=False)) == []


@pytest.mark.parametrize(
    ("flags", "environ", "expected"),
    [
        ("avx2", {}, False),
        ("avx2", {"TF_ENABLE_ONEDNN_OPTS": "1"}, True),
        ("avx2 avx512_vnni", {}, True),
        ("avx2 avx512_vnni", {"TF_ENABLE_ONEDNN_OPTS": "0"}, False),
    ],
)
def test_whether_onednn_runs(tmp_path, flags, environ, expected):
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n")
    assert environment.takes_onednn(environ, tmp_path / "cpuinfo") is expected


# What is kept


def test_what_is_kept_is_for_one_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here, module = Program("a.py"), Program("a", is_module=True)
    (tmp_path / "sub").mkdir()
    found = {"TF_NUM_INTEROP_THREADS": "1", "LD_PRELOAD": "/nowhere.so", "PATH": "/evil"}
    kept.keep(here, found)
    usable = {"TF_NUM_INTEROP_THREADS": "1"}
    assert kept.environ(here) == kept.environ(Program(str(tmp_path / "a.py"), ("x",))) == usable
    assert kept.environ(module) == kept.environ(Program("b.py")) == {}
    monkeypatch.chdir(tmp_path / "sub")
    assert kept.environ(here) == {}
    assert kept.environ(Program("../a.py")) == usable


def test_flags_are_kept_for_one_tensorflow(monkeypatch):
    kept.keep(Program("a.py"), {"TF_NUM_INTEROP_THREADS": "1", "XLA_FLAGS": "--f"})
    assert kept.environ(Program("a.py"))["XLA_FLAGS"] == "--f"
    monkeypatch.setattr(kept, "tensorflow_version", lambda: "9.9")
    assert kept.environ(Program("a.py")) == {"TF_NUM_INTEROP_THREADS": "1"}


def test_versions_are_told_without_an_import():
    assert packages.tensorflow_version() == tf.__version__
    assert packages.version_of("no-such-package") is None


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "environ": [1]}'])
def test_a_broken_file_is_no_file(tmp_path, text):
    path = kept.keep(Program("a.py"), {"TF_NUM_INTEROP_THREADS": "1"})
    path.write_text(text)
    assert kept.environ(Program("a.py")) == {}


def test_the_cache_forgets_it(tmp_path):
    kept.keep(Program("a.py"), {"TF_NUM_INTEROP_THREADS": "1"})
    assert portable.clear_cache(portable.contents()) == 1
    assert kept.environ(Program("a.py")) == {}
