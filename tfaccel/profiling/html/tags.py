"""HTML as a tree: what a file says is text in it, and can't become markup."""

import xml.etree.ElementTree as ET
from collections.abc import Collection, Iterable, Sequence

from tfaccel.profiling.html.figures import Figure

Content = ET.Element | str
# Rows above which a table scrolls up and down in its box.
LONG = 12


def tag(name: str, /, *content: Content, **attributes: str) -> ET.Element:
    """An element.

    Args:
        name: of the tag.
        content: elements and text, in order.
        attributes: underscores stand for hyphens; one at the end is left out.

    >>> ET.tostring(tag("p", "1 < 2 ", tag("b", "yes"), class_="x"), encoding="unicode")
    '<p class="x">1 &lt; 2 <b>yes</b></p>'
    """
    element = ET.Element(
        name, {key.rstrip("_").replace("_", "-"): text for key, text in attributes.items()}
    )
    for item in content:
        if isinstance(item, ET.Element):
            element.append(item)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + item
        else:
            element.text = (element.text or "") + item
    return element


def section(title: str, *content: Content | None) -> ET.Element:
    """A section with its heading; what is None is left out."""
    return tag("section", tag("h2", title), *(item for item in content if item is not None))


def beside(*items: ET.Element | None) -> ET.Element | None:
    """What stands side by side on a wide screen; None for nothing."""
    shown = [item for item in items if item is not None]
    return tag("div", *shown, class_="beside") if shown else None


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numbers: Collection[str] = (),
    chosen: int | None = None,
) -> ET.Element:
    """A table in a box that scrolls by itself where the table is larger.

    Args:
        caption: what it shows.
        headings: one a column; none for a table whose rows are headed alone.
        rows: the cells; the first of each heads its row.
        numbers: the headings of the columns that are set flush right.
        chosen: the row to stand out, if any.
    """
    kinds = [{"class_": "number"} if heading in numbers else {} for heading in headings]
    whole = tag("table", tag("caption", caption))
    if headings:
        heads = (
            tag("th", heading, scope="col", **kind)
            for heading, kind in zip(headings, kinds, strict=True)
        )
        whole.append(tag("thead", tag("tr", *heads)))
    body = tag("tbody", *(_row(cells, kinds) for cells in rows))
    if chosen is not None:
        body[chosen].set("class", "chosen")
    whole.append(body)
    # A box that scrolls must be reachable by keyboard, and a region needs a name.
    look = "scroll long" if len(body) > LONG else "scroll"
    return tag("div", whole, class_=look, role="region", aria_label=caption, tabindex="0")


def _row(cells: Sequence[str], kinds: Sequence[dict[str, str]]) -> ET.Element:
    kinds = kinds or [{}] * len(cells)
    head = tag("th", cells[0], scope="row", **kinds[0])
    others = (tag("td", cell, **kind) for cell, kind in zip(cells[1:], kinds[1:], strict=True))
    return tag("tr", head, *others)


def cards(figures: Iterable[Figure]) -> ET.Element:
    """The key figures."""
    whole = tag("dl", class_="cards")
    for figure in figures:
        card = tag("div", tag("dt", figure.label), tag("dd", figure.value, class_="value"))
        if figure.note:
            card.append(tag("dd", figure.note))
        whole.append(card)
    return whole
