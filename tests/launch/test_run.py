"""`tfaccel run`: a program behaves as under `python`, but for its fits."""

import os
import signal
import subprocess
import sys

import pytest
from programs_run import FACTS, ROOT, RUN, SPAWN, ended

PICKLE = """
import pickle
class Point: pass
print(type(pickle.loads(pickle.dumps(Point()))) is Point)
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
