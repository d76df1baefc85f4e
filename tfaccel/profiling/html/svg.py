"""A matplotlib figure as SVG that takes its colours and its font from the page."""

import dataclasses
import io
import re
import xml.etree.ElementTree as ET
from typing import Any

# matplotlib draws in fixed colours only. Each paint of the page has a stand-in, which
# is put back afterwards, so that one picture serves a light and a dark page.
PAINTS = ("currentColor", "var(--grid)", *(f"var(--paint-{index})" for index in range(8)))
_STAND_INS = {f"#0101{index:02x}": paint for index, paint in enumerate(PAINTS)}
_COLOUR = re.compile("|".join(_STAND_INS))
# Before matplotlib 3.11 `font: 11px 'DejaVu Sans', ...`, then a property for each.
_FONT = re.compile(r"\bfont: [^;]*?([\d.]+px)[^;]*")
_FAMILY = re.compile(r"\bfont-family: [^;]*;? *")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def stand_in(paint: str) -> str:
    """The colour to draw in for one of `PAINTS`."""
    return f"#0101{PAINTS.index(paint):02x}"


@dataclasses.dataclass(frozen=True)
class Chart:
    """What is said about a chart."""

    name: str  # letters that no other chart of the page has
    title: str  # for people who can't see it
    description: str
    unit: str  # of the values


def inline_svg(figure: Any, chart: Chart) -> str:
    """Draws a `matplotlib.figure.Figure` and makes it part of a page.

    Returns:
        The text of the `svg` element, without namespaces, metadata, styles or a size of its own.
        Each id begins with the chart's name, as ids must differ within a page.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", transparent=True, metadata=_NO_METADATA)
    root = ET.fromstring(file.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if _local(child.tag) in ("metadata", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = _local(element.tag)
        found = element.attrib.items()
        kept = {_local(key): _of_the_page(value, chart.name) for key, value in found}
        if "id" in kept:
            kept["id"] = f"{chart.name}-{kept['id']}"
        element.attrib.clear()
        element.attrib.update(kept)
    _label(root, chart)
    return ET.tostring(root, encoding="unicode", method="html")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _of_the_page(value: str, name: str) -> str:
    value = _COLOUR.sub(lambda found: _STAND_INS[found[0]], value)
    value = _FAMILY.sub("", _FONT.sub(r"font-size: \1", value))
    if value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-")


def _label(root: ET.Element, chart: Chart) -> None:
    kept = {"viewBox": root.get("viewBox", ""), "class": "plot", "role": "img"}
    root.attrib.clear()
    root.attrib.update(kept | {"aria-labelledby": f"{chart.name}-title {chart.name}-desc"})
    for index, (tag, text) in enumerate((("title", chart.title), ("desc", chart.description))):
        child = ET.Element(tag, {"id": f"{chart.name}-{tag}"})
        child.text = text
        root.insert(index, child)
