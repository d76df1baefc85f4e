"""Examples in docstrings (`>>>`) are shown as code, wherever in a docstring they stand."""

import re

import griffe

_LINES = r".*(?:\n(?! *$).+)*"
# From the first prompt on, as long as parts with a prompt follow.
_EXAMPLE = re.compile(rf"^( *)>>> {_LINES}(?:\n *\n\1(?:>>>|\.\.\.) {_LINES})*", flags=re.M)


def _fenced(found: re.Match[str]) -> str:
    return f"{found[1]}```pycon\n{found[0]}\n{found[1]}```"


class Doctests(griffe.Extension):
    """Puts examples between fences before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None:
            obj.docstring.value = _EXAMPLE.sub(_fenced, obj.docstring.value)
