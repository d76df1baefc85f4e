"""The command line takes each command that the documents show."""

import argparse
import pathlib
import re
import shlex

import pytest

from tfaccel.cli.commands import COMMANDS

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LISTED = {each.name: each for each in COMMANDS}


def shown():
    """The words of each command in a block without a language, or in an indented one."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", "")
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.S | re.M)
        lines = [line for language, block in fenced if not language for line in block.split("\n")]
        lines += re.findall(r"^ {4}(.+)$", re.sub(r"(?sm)^```.*?^```$", "", text), flags=re.M)
        for line in lines:
            found = re.match(r"(?:\w+=\S+ )*tfaccel ([a-z].*)", line)
            if found is not None:
                yield pytest.param(found[1].split(" | ")[0], id=f"{page.stem}: {found[1]}")


@pytest.mark.parametrize("line", shown())
def test_the_command_line_takes_a_command_of_the_documents(line):
    command, *words = shlex.split(line, comments=True)
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    LISTED[command].load().define(parser)
    parser.add_argument("--format", choices=("table", "json", "markdown"))
    parser.add_argument("--debug", action="store_true")
    assert parser.parse_args(words)
