"""What `tfaccel run` does before the program: its words, settings and imports."""

import argparse
import contextlib
import importlib.util
import os
import sys
import types

import pytest
from programs_run import ROOT, RUN, ended

from tfaccel.cli import main, run
from tfaccel.cli._status import EXIT_USAGE
from tfaccel.launch import environment
from tfaccel.launch.imports import after_import
from tfaccel.launch.program import Program
from tfaccel.launch.start import Options
from tfaccel.launch.sweep import kept

# Of Python's own: what takes as long as all that is loaded for a program that trains nothing.
SLOW_TO_LOAD = {"argparse", "dataclasses", "hashlib", "importlib.metadata", "inspect", "json"} | {
    *("logging", "pathlib", "platform", "re", "shutil", "subprocess", "traceback", "typing")
}
OF_THE_PARSER = {"argparse", "re", "shutil", "typing"}


def test_a_program_loads_next_to_nothing_of_ours(folder):
    """Without `site`, which loads more where a package is installed for editing."""
    (folder / "script.py").write_text("import sys; print(*sys.modules)\n")
    (folder / "package" / "__main__.py").write_text("import runpy, sys; print(*sys.modules)\n")
    paths = os.pathsep.join(filter(os.path.isdir, [str(ROOT), *sys.path]))
    found = []
    for words in (["package"], [*RUN[1:], "script.py"], [*RUN[1:], "--tuning=off", "script.py"]):
        status, out, said = ended(["-S", "-m", *words], folder, environ={"PYTHONPATH": paths})
        assert status == 0, said
        found.append(set(out.split()) - {"package"})
    plain, under, parsed = found
    ours = {name for name in under - plain if name.partition(".")[0] == "tfaccel"}
    assert not SLOW_TO_LOAD & (under - plain)
    assert not (SLOW_TO_LOAD - OF_THE_PARSER) & (parsed - plain)
    assert "tfaccel.launch.start" in ours
    parts = {"tfaccel", "cli", "launch", "system", "version"}
    assert {part for name in ours for part in name.split(".")[:2]} == parts
    assert len(ours) <= 20


@pytest.mark.parametrize(
    "words", [["script.py"], ["script.py", "-m", "x", "--", "--verbose"], ["-m", "a.b", "-h"]]
)
def test_the_short_way_is_the_parser_s(folder, monkeypatch, words):
    """Without options nothing is parsed: the program and what is asked of it are the same."""
    monkeypatch.chdir(folder)
    (folder / "script.py").write_text("")
    parser = argparse.ArgumentParser()
    run.COMMAND.define(parser)
    program, options = run.COMMAND.run(parser.parse_args(words)).start.args
    short = main.without_options(["run", *words])
    assert (vars(short), vars(Options())) == (vars(program), vars(options))


@pytest.mark.parametrize("words", [[], ["doctor"], ["run"], ["run", "--verbose", "a.py"]])
def test_all_else_is_the_parser_s(words):
    assert main.without_options(words) is None


def test_the_help_loads_no_tensorflow(folder):
    code = "import sys, tfaccel.cli.main as m; m.main(['run', '--help']); m.main(['--help']); "
    status, out, _ = ended(["-c", code + "print('tensorflow' in sys.modules)"], folder)
    assert (status, out.splitlines()[-1]) == (0, "False")
    assert "measure_into" not in out


# The environment


def listing(folder, flags, key="flags"):
    path = folder / "cpuinfo"
    path.write_text(f"processor\t: 0\n{key}\t\t: {flags}\n")
    return path


@pytest.mark.parametrize(
    ("flags", "machine", "system", "expected"),
    [
        ("fma avx2", "x86_64", "Linux", "1"),
        ("avx2 avx512f", "AMD64", "Windows", "1"),
        ("sse4_2 avx", "x86_64", "Linux", None),
        ("avx2 avx512f avx512_vnni", "x86_64", "Linux", None),  # on by itself
        ("avx2 amx_tile", "x86_64", "Linux", None),
        ("avx2", "x86_64", "Darwin", None),
        ("asimd sve", "aarch64", "Linux", None),
    ],
)
def test_what_suits_the_machine(tmp_path, flags, machine, system, expected):
    found = environment.preset(listing(tmp_path, flags), machine, system)
    assert found.get(environment.ONEDNN) == expected


@pytest.mark.parametrize(
    ("given", "seen"),
    [({}, "1"), ({environment.ONEDNN: "0"}, "0"), ({environment.ONEDNN: ""}, "")],
)
def test_onednn_is_on_where_tensorflow_leaves_it_off(folder, given, seen):
    """On a chip that goes by another one's listing."""
    (folder / "script.py").write_text("import os; print(os.environ['TF_ENABLE_ONEDNN_OPTS'])")
    code = (
        "import os, sys; from tfaccel.cli.main import main; "
        "from tfaccel.launch import environment as found; "
        "found._machine, sys.platform = lambda: 'x86_64', 'linux'; "
        "found.cpu_facts = lambda path: {'flags': 'fma avx2'}; "
        f"os.environ.pop(found.ONEDNN, None); os.environ.update({given}); "
        "sys.exit(main(['run', 'script.py']))"
    )
    assert ended(["-c", code], folder) == (0, f"{seen}\n", "")


def test_what_the_user_sets_wins(monkeypatch):
    monkeypatch.setattr(environment, "preset", lambda: {"A": "preset", "B": "preset"})
    kept_before = {"B": "kept", "C": "kept"}
    assert environment.additions(kept_before, {}) == {"A": "preset", "B": "kept", "C": "kept"}
    assert environment.additions(kept_before, {"A": "", "C": "mine"}) == {"B": "kept"}


def test_a_program_finds_what_a_sweep_kept(folder, tmp_path):
    """A library to preload is there from the start: the process begins anew for it."""
    library = tmp_path / "none.so"
    library.write_text("")
    script = folder / "script.py"
    script.write_text(
        "import os, sys\n"
        "print([os.environ.get(n) for n in ('TF_NUM_INTEROP_THREADS', 'LD_PRELOAD', 'ODD')])\n"
        "print(sys.argv, input())\n"
    )
    found = {"TF_NUM_INTEROP_THREADS": "1", "LD_PRELOAD": str(library), "ODD": "x"}
    kept.keep(Program(str(script)), found)
    _, out, _ = ended([*RUN, "script.py", "--flag"], folder, "line\n")
    assert out == f"['1', '{library}', None]\n['script.py', '--flag'] line\n"
    mine = {"TF_NUM_INTEROP_THREADS": "2", "LD_PRELOAD": ""}
    _, out, _ = ended([*RUN, "script.py"], folder, "line\n", mine)
    assert out.startswith("['2', '', None]")


# The hook on imports


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of this name in a folder that Python looks into."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    yield tmp_path / "hooked_by_name.py"
    sys.modules.pop("hooked_by_name", None)


def test_a_module_is_told_of_once_when_it_is_whole(module):
    module.write_text("value = 1\n")
    told, before = [], list(sys.meta_path)
    after_import(module.stem, lambda found: told.append(found.value))
    assert importlib.util.find_spec(module.stem).name == module.stem  # looked for, no more
    assert told == []
    import hooked_by_name

    assert told == [1]
    assert type(hooked_by_name.__loader__).__name__ == "SourceFileLoader"
    assert "exec_module" not in vars(hooked_by_name.__loader__)
    assert sys.meta_path == before
    after_import(module.stem, lambda found: told.append("at once"))
    assert told == [1, "at once"]


def test_a_module_s_code_runs_in_a_context(module):
    module.write_text("import hooked_in; hooked_in.told.append('code')\n")
    told = []

    @contextlib.contextmanager
    def during():
        told.append("begin")
        yield
        told.append("end")

    sys.modules["hooked_in"] = types.SimpleNamespace(told=told)
    try:
        after_import(module.stem, lambda _: told.append("then"), during)
        __import__(module.stem)
    finally:
        del sys.modules["hooked_in"]
    assert told == ["begin", "code", "end", "then"]


def test_garbage_waits_for_tensorflow(folder):
    """Under `tfaccel run`; by modules of these names, as the true ones take seconds."""
    told = "import gc; print(gc.get_threshold()[0] == 0)\n"
    for name in ("tensorflow", "keras"):
        (folder / f"{name}.py").write_text(told)
    (folder / "script.py").write_text(f"import tensorflow\n{told}import keras\n{told}")
    _, out, _ = ended([*RUN, "script.py"], folder)
    assert out.split() == ["True", "False", "True", "False"]


def test_a_module_whose_import_fails_is_waited_for(module):
    told = []
    after_import(module.stem, lambda found: told.append(found.value))
    for code, error in [(None, ModuleNotFoundError), ("1 / 0", ZeroDivisionError)]:
        if code is not None:
            module.write_text(code)
        with pytest.raises(error):
            __import__(module.stem)
    module.write_text("value = 'at last'\n")
    __import__(module.stem)
    assert told == ["at last"]


def test_the_user_is_told_where_the_words_go_wrong(capsys):
    assert main.main(["run", "nowhere.py", "--sweep"]) == EXIT_USAGE
    assert capsys.readouterr().err == "tfaccel run: there is no file nowhere.py\n"
