import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import pytest

from tfaccel.cli import commands as command_line
from tfaccel.cli import main
from tfaccel.cli._command import Command, Handover, UsageError, positive_int
from tfaccel.version import __version__

ROOT = pathlib.Path(__file__).parent.parent
COMMANDS = command_line.COMMANDS


@dataclasses.dataclass(frozen=True)
class Echo:
    """A result that says what the command was handed."""

    words: tuple[str, ...]
    times: int
    exit_code: int = 0

    def __rich__(self):
        return f"table of {self.words} {self.times}"

    def to_json(self):
        return json.dumps({"words": self.words, "times": self.times})

    def to_markdown(self):
        return f"| {self.words} | {self.times} |\n"


def define(parser):
    parser.add_argument("words", nargs="*")
    parser.add_argument("--times", type=positive_int, default=1, help="how often")
    parser.add_argument("-o", "--output", help="where to")


def run(args):
    print("noise on the way")
    if "usage" in args.words:
        raise UsageError("MODEL must be a file.\nReceived: usage")
    if "crash" in args.words:
        raise ZeroDivisionError("long\nand on\nmany lines")
    if "interrupt" in args.words:
        raise KeyboardInterrupt
    return Echo(tuple(args.words), args.times, exit_code=int("problem" in args.words))


@dataclasses.dataclass(frozen=True)
class Here:
    """A command that is in no module of its own, as the overview has the others (`Listed`)."""

    name: str
    summary: str
    command: Command

    def load(self):
        return self.command


ECHO = Here("echo", "Says it again.", Command(define, run))
OTHER = Here("other", "Does nothing.", Command(define, run))


@pytest.fixture(autouse=True)
def commands(monkeypatch):
    monkeypatch.setattr(command_line, "COMMANDS", (ECHO, OTHER))


def one_line(capsys):
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1, err
    return err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_the_overview(capsys, words):
    assert main.main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: tfaccel")
    for text in ("COMMAND", "Says it again.", "Does nothing."):
        assert text in out
    assert err == ""


@pytest.mark.parametrize("words", [["echo", "--help"], ["echo", "-h"], ["echo", "x", "--help"]])
def test_the_help_of_a_command(capsys, words):
    assert main.main(words) == 0
    out, err = capsys.readouterr()
    assert out.startswith("usage: tfaccel echo")
    for text in ("Says it again.", "how often", "--output", "where to", "{table,json,markdown}"):
        assert text in out
    # Its own flags come first.
    assert out.index("how often") < out.index("how to print")
    assert err == ""


def test_after_two_dashes_help_is_a_word(capsys):
    assert main.main(["echo", "--format=json", "--", "--help"]) == 0
    assert json.loads(capsys.readouterr().out)["words"] == ["--help"]


def test_the_version(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tfaccel {__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ecko"], "invalid choice: 'ecko' (choose from"),
        (["--format=json", "echo"], "unrecognized arguments: --format=json"),
        (["echo", "--tims=2"], "unrecognized arguments: --tims=2"),
        (["echo", "--time=2"], "unrecognized arguments: --time=2"),
        (["echo", "--format=xml"], "argument --format: invalid choice: 'xml'"),
        (["echo", "--times=-1"], "argument --times: must be a whole number from 1. Received: '-1'"),
        (["echo", "--times=many"], "argument --times: must be a whole number from 1"),
        (["echo", "--output"], "argument -o/--output: expected one argument"),
        (["echo", "--format=xml"], "(`tfaccel echo --help` lists the flags)"),
        (["echo", "usage"], "tfaccel echo: MODEL must be a file. Received: usage"),
    ],
)
def test_words_that_can_t_be_taken(capsys, words, message):
    assert main.main(words) == command_line.EXIT_USAGE
    err = capsys.readouterr().err.replace("noise on the way\n", "")
    assert message in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ([], "table of ('a', 'b') 3\n"),
        (["--format=table"], "table of ('a', 'b') 3\n"),
        (["--format=json"], '{"words": ["a", "b"], "times": 3}\n'),
        (["--format=markdown"], "| ('a', 'b') | 3 |\n"),
    ],
)
def test_standard_output_holds_the_result_alone(capsys, form, expected):
    assert main.main(["echo", "a", "b", "--times", "3", *form]) == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert err == "noise on the way\n"


def test_a_result_may_name_a_failure(capsys):
    assert main.main(["echo", "problem"]) == 1
    assert "problem" in capsys.readouterr().out


def test_an_unexpected_error_is_one_line(capsys):
    assert main.main(["echo", "crash"]) == command_line.EXIT_FAILED
    out, err = capsys.readouterr()
    assert out == ""
    _noise, *said = err.splitlines()
    assert said == ["tfaccel echo: ZeroDivisionError: long and on many lines"]


def test_debug_shows_the_traceback(capsys):
    assert main.main(["echo", "crash", "--debug"]) == command_line.EXIT_FAILED
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert err.endswith("tfaccel echo: ZeroDivisionError: long and on many lines\n")


def test_an_error_of_many_pages_is_cut(capsys, monkeypatch):
    def shout(args):
        raise ValueError("x" * 10_000)

    shouts = dataclasses.replace(ECHO, command=Command(define, shout))
    monkeypatch.setattr(command_line, "COMMANDS", (shouts,))
    assert main.main(["echo"]) == command_line.EXIT_FAILED
    assert len(one_line(capsys)) < 500


def test_ctrl_c(capsys):
    assert main.main(["echo", "interrupt"]) == command_line.EXIT_INTERRUPTED
    assert capsys.readouterr().err.endswith("tfaccel: interrupted\n")


def test_what_a_program_raises_is_its_own(monkeypatch):
    """After the handover nothing is caught, or printed elsewhere."""

    def start():
        assert sys.stdout is before
        raise KeyboardInterrupt

    before = sys.stdout
    hands_over = Command(define, lambda args: Handover(start))
    monkeypatch.setattr(command_line, "COMMANDS", (dataclasses.replace(ECHO, command=hands_over),))
    with pytest.raises(KeyboardInterrupt):
        main.main(["echo"])


def test_a_reader_that_leaves_is_no_error(monkeypatch, tmp_path):
    class Closed:
        """Standard output whose reader is gone."""

        def __init__(self, handle):
            self.handle = handle

        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            raise BrokenPipeError

        def fileno(self):
            return self.handle

    with open(tmp_path / "out", "w") as file:
        monkeypatch.setattr(sys, "stdout", Closed(file.fileno()))
        status = main.main(["echo", "--format=json"])
        monkeypatch.undo()
        assert status == command_line.EXIT_FAILED
        file.write("nobody reads this")
    assert (tmp_path / "out").read_text() == ""


def test_a_command_s_flags_are_its_own(capsys):
    """Two commands may have flags of one name, and one run leaves nothing to the next."""
    assert main.main(["echo", "--times=5", "--format=json"]) == 0
    assert main.main(["other", "--format=json"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert (json.loads(first)["times"], json.loads(second)["times"]) == (5, 1)


def test_the_words_of_this_process(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tfaccel", "echo", "--format=json", "word"])
    assert main.main() == 0
    assert json.loads(capsys.readouterr().out)["words"] == ["word"]


def test_every_command_has_help_and_a_section(capsys, monkeypatch):
    monkeypatch.setattr(command_line, "COMMANDS", COMMANDS)
    names = [command.name for command in COMMANDS]
    own = ["doctor", "run", "bench", "tune", "accelerate", "explain", "report", "cache"]
    assert names == own
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert main.main([command.name, "--help"]) == 0
        out = capsys.readouterr().out
        assert command.summary in out
        assert "--format" in out
        assert f"## `tfaccel {command.name}`" in text


@pytest.mark.slow
def test_as_a_module():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "tfaccel", "--version"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout == f"tfaccel {__version__}\n"
