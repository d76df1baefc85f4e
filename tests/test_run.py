"""`tfaccel run`: a program behaves as under `python`, but for its fits."""

import argparse
import importlib.util
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import zipfile

import pytest

from tfaccel.cli import main, run
from tfaccel.cli._status import EXIT_USAGE
from tfaccel.launch import environment
from tfaccel.launch.imports import after_import
from tfaccel.launch.program import Program
from tfaccel.launch.start import Options
from tfaccel.launch.sweep import kept

ROOT = pathlib.Path(__file__).parent.parent
RUN = ("-m", "tfaccel", "run")

# Of Python's own: what takes as long as all that is loaded for a program that trains nothing.
SLOW_TO_LOAD = {"argparse", "dataclasses", "hashlib", "importlib.metadata", "inspect", "json"} | {
    *("logging", "pathlib", "platform", "re", "shutil", "subprocess", "traceback", "typing")
}
OF_THE_PARSER = {"argparse", "re", "shutil", "typing"}
FACTS = """
'''A program that tells what it finds.'''
import atexit, builtins, sys
main = sys.modules["__main__"]
print(__name__, __file__, __package__, __doc__, sys.argv, sys.path)
print(type(__loader__).__name__, getattr(__spec__, "name", None), __builtins__ is builtins)
print(vars(main) is globals(), __cached__ is None)
print({"tensorflow", "keras", "numpy", "rich", "importlib.metadata"} & set(sys.modules))
"""
PICKLE = """
import pickle
class Point: pass
print(type(pickle.loads(pickle.dumps(Point()))) is Point)
"""
SPAWN = """
import multiprocessing
def double(x): return 2 * x
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        print(pool.map(double, [1, 2]))
"""
FORKS = """
import concurrent.futures, multiprocessing, os, sys
def tell(queue):
    queue.put((__name__, sys.argv))
    sys.exit(6)
if __name__ == "__main__":
    for way in ("fork", "forkserver"):
        context = multiprocessing.get_context(way)
        queue = context.Queue()
        process = context.Process(target=tell, args=(queue,))
        process.start()
        print(queue.get())
        process.join()
        print(process.exitcode)
    with concurrent.futures.ProcessPoolExecutor(1) as pool:
        print(pool.submit(abs, -1).result())
    child = os.fork()
    if not child:
        sys.exit(3)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
AT_EXIT = """
import atexit, threading, time
atexit.register(lambda: print("bye from", __name__))
threading.Timer(0.05, lambda: print("thread in", __name__)).start()
"""
HOOK = """
import sys
sys.excepthook = lambda kind, error, trace: print(kind, error, trace.tb_frame.f_code.co_name)
raise ValueError("mine")
"""
# How a hook can go wrong; the last line of each raises.
BAD_HOOKS = [
    f"import sys\n{line}\nraise ValueError('mine')"
    for line in (
        "def hook(*_): 1 / 0\nsys.excepthook = hook",
        "def hook(*_): sys.exit(9)\nsys.excepthook = hook",
        "sys.excepthook = None",
        "del sys.excepthook",
    )
]
CHAINED = """
def inner():
    raise KeyError("inner")
try:
    inner()
except KeyError as error:
    raise RuntimeError("outer") from error
"""


@pytest.fixture
def folder(tmp_path):
    """A folder to work in, with a package and programs in other forms."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("print('package', __name__)\n")
    (package / "other.py").write_text("VALUE = 3\n")
    (package / "module.py").write_text("from . import other\n" + FACTS + "print(other.VALUE)\n")
    (package / "__main__.py").write_text("from .other import VALUE\n" + FACTS + "print(VALUE)\n")
    (package / "broken.py").write_text("import nowhere_to_be_found\n")
    (package / "spawning.py").write_text(SPAWN)
    (package / "failing.py").write_text("import sys\nsys.exit(5)\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "script.py").write_text(FACTS)
    (tmp_path / "link.py").symlink_to(tmp_path / "sub" / "script.py")
    shutil.copytree(package, tmp_path / "app")
    (tmp_path / "app" / "__main__.py").write_text(FACTS)
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as file:
        file.writestr("__main__.py", FACTS)
    return tmp_path


def ended(words, folder, stdin="", environ=()):
    """The status of a process, and what it printed."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **dict(environ)},
        timeout=120,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("code", "words", "stdin"),
    [
        (FACTS, [], ""),
        (FACTS, ["--help", "-m", "--", "--tuning=full", "-x", "a b", ""], ""),
        ("print(input(), input())", [], "first\nsecond\n"),
        ("import sys; print(sys.stdin.read())", [], "all of it"),
        ("import sys; sys.exit()", [], ""),
        ("import sys; sys.exit(3)", [], ""),
        ("import sys; sys.exit('words')", [], ""),
        ("raise SystemExit(256 + 4)", [], ""),
        ("import os; os._exit(4)", [], ""),
        ("def f(): 1 / 0\n\nf()", [], ""),
        ("raise KeyboardInterrupt", [], ""),
        ("import nowhere_to_be_found", [], ""),
        ("print('never'\nx = = 1", [], ""),
        ("from __future__ import annotations\nx: no_such_name = 1\nprint(x)", [], ""),
        ("def f(x: 3): pass\nprint(f.__annotations__)", [], ""),
        ("assert False, 'optimized?'", [], ""),
        ("import os; os.kill(os.getpid(), 15)", [], ""),
        ("import inspect\ndef f(): pass\nprint(inspect.getsource(f))", [], ""),
        ("import logging; logging.basicConfig(); logging.error('x')", [], ""),
        (CHAINED, [], ""),
        (HOOK, [], ""),
        *((code, [], "") for code in BAD_HOOKS),
        ("print(sorted(globals()), __annotations__)", [], ""),
        ("import sys; sys.exit(True)", [], ""),
        ("import sys; sys.exit(-1)", [], ""),
        ("import sys; sys.exit((1, 2.5))", [], ""),
        (
            "try: 1 / 0\nexcept ArithmeticError as error: raise SystemExit('words') from error",
            [],
            "",
        ),
        ("import os; os.abort()", [], ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", [], ""),
        ("import sys\nsys.excepthook = lambda *_: print(1)\nraise KeyboardInterrupt", [], ""),
        ("import atexit, sys\nfor i in range(3): atexit.register(print, i)\nsys.exit(4)", [], ""),
        ("import threading\nthreading.Thread(target=lambda: 1 / 0, name='t').start()", [], ""),
        ("class A:\n  def __del__(self): print(__name__)\na = A()\nraise ValueError", [], ""),
        ("x = 3\nbreakpoint()\nprint(x)", [], "p x\nc\n"),
        ("print(__spec__, __package__, __loader__.name, __loader__.path, __file__)", [], ""),
        ("import signal\nfor s in (2, 13, 15): print(signal.getsignal(s))", [], ""),
        (
            "import argparse\np = argparse.ArgumentParser()\np.add_argument('x')\np.parse_args()",
            [],
            "",
        ),
        ("", [], ""),
        (FORKS, ["a"], ""),
        (PICKLE, [], ""),
        (AT_EXIT, [], ""),
        (SPAWN, [], ""),
    ],
)
def test_a_script_behaves_as_under_python(folder, code, words, stdin):
    (folder / "script.py").write_text(code)
    expected = ended(["script.py", *words], folder, stdin)
    assert ended([*RUN, "script.py", *words], folder, stdin) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["sub/script.py", "x"],
        ["link.py"],
        ["app", "x"],
        ["app.zip"],
        ["-m", "package.module", "--lr", "0.1", "-h"],
        ["-m", "package"],
        ["-m", "package.failing"],
        ["-m", "package.spawning"],
    ],
    ids=" ".join,
)
def test_programs_in_other_forms(folder, words):
    assert ended([*RUN, *words], folder) == ended(words, folder)


def test_a_module_that_fails_shows_its_own_frames(folder):
    status, _, said = ended([*RUN, "-m", "package.broken"], folder)
    assert (status, said.splitlines()[-1]) == (
        1,
        "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    )
    assert said.count("  File ") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "there is no file nowhere.py"),
        (["-m", "nowhere"], "No module named nowhere"),
        (["-m", "nowhere.module"], "No module named nowhere.module"),
        (["-m", "package.nowhere"], "No module named package.nowhere"),
        (["-m", "package..other"], "No module named package..other"),
        (["sub"], "there is no __main__.py in sub"),
        (["-m", "json"], "json is a package without a __main__.py"),
        ([], "the following arguments are required: program (`tfaccel run"),
        (["--tuning=fast", "link.py"], "argument --tuning: invalid choice: 'fast'"),
        (["--profil=x", "link.py"], "unrecognized arguments: --profil=x (`tfaccel run --help`"),
    ],
)
def test_words_that_name_no_program(folder, words, said):
    status, out, error = ended([*RUN, *words], folder)
    assert (status, out.replace("package package\n", "")) == (2, "")
    assert said in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, -2), (signal.SIGTERM, -15)])
def test_signals(folder, number, status):
    code = "import time\nprint('begun', flush=True)\ntime.sleep(60)\n"
    (folder / "script.py").write_text(code)
    process = subprocess.Popen(
        [sys.executable, *RUN, "script.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell has its jobs in the background ignore Ctrl-C, and their children with them.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status
    assert said.endswith("KeyboardInterrupt\n" * (number == signal.SIGINT))


@pytest.mark.parametrize(
    "flags",
    [["-OO"], ["-W", "error"], ["-X", "dev"], ["-X", "utf8", "-B", "-u"], ["-i"]],
    ids=" ".join,
)
def test_flags_before_the_module_hold(folder, flags):
    """Of `python -i` the prompt reads on, in the program's names."""
    code = "import sys, warnings\nprint(sys.flags, sys.warnoptions, sys._xoptions)\n"
    code += "x = open(__file__).closed\nwarnings.warn('old', DeprecationWarning)\n"
    (folder / "script.py").write_text(code)
    expected = ended([*flags, "script.py"], folder, "print(x)\n")
    assert ended([*flags, *RUN, "script.py"], folder, "print(x)\n") == expected


@pytest.mark.parametrize("variable", ["PYTHONSAFEPATH", "PYTHONOPTIMIZE", "PYTHONWARNINGS"])
def test_python_s_own_settings_hold(folder, variable):
    code = FACTS + "import warnings; warnings.warn('once')\nassert False, 'unless optimized'\n"
    (folder / "script.py").write_text(code)
    environ = {variable: "error" if variable == "PYTHONWARNINGS" else "1"}
    for words in (["script.py"], ["app"], ["link.py"]):
        expected = ended(words, folder, environ=environ)
        assert ended([*RUN, *words], folder, environ=environ) == expected


def test_a_program_without_a_fit_is_told_so(folder):
    """By a module that goes by Keras's name, as the real one takes seconds to import."""
    (folder / "keras.py").write_text("")
    (folder / "script.py").write_text("import sys, keras\nsys.exit(len(sys.argv) - 1)\n")
    (folder / "whole.py").write_text("import keras\n")
    told = "tfaccel: there was no `fit` in this process, so nothing was accelerated in it"
    status, out, said = ended([*RUN, "script.py", "x"], folder)
    assert (status, out, told in said) == (1, "", False)
    for words in (["whole.py"], ["script.py"]):  # `sys.exit(0)` is an end like any other
        status, out, said = ended([*RUN, *words], folder)
        assert (status, out, said.count(told)) == (0, "", 1)


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
