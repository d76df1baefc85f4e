"""Tables of text, for a terminal and as Markdown."""

from collections.abc import Collection, Sequence

import rich.box
import rich.table
from rich.markup import escape

# A word up to this width stays in one piece where a column gets narrow: the longest name of
# a pass and the plus behind it. What is longer, as a path, is broken.
_UNBROKEN = 18


def terminal_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    bold: Collection[int] = (),
) -> rich.table.Table:
    """A table for a terminal; words fold where it is narrow, numbers don't.

    Cells are text: brackets mean nothing. Columns whose headings are in `numbers` are set flush
    right, rows whose indices are in `bold` stand out.
    """
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for place, heading in enumerate(headings):
        if heading in numbers:
            table.add_column(heading, justify="right", no_wrap=True)
        else:
            words = [word for row in rows for word in row[place].split()]
            widest = max(map(len, words), default=0)
            table.add_column(heading, overflow="fold", min_width=min(widest, _UNBROKEN))
    for index, cells in enumerate(rows):
        table.add_row(*map(escape, cells), style="bold" if index in bold else None)
    return table


def markdown_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: Collection[str] = ()
) -> str:
    """The same as Markdown; a bar in a cell stays in it.

    >>> print(markdown_table(["a", "b"], [["x|y", "1"]], numbers=["b"]))
    | a | b |
    | --- | ---: |
    | x\\|y | 1 |
    """
    lines = [
        list(headings),
        ["---:" if heading in numbers else "---" for heading in headings],
        *([cell.replace("|", "\\|") for cell in row] for row in rows),
    ]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
