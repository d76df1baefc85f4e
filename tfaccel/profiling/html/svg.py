"""A matplotlib figure as SVG that takes its colours and its font from the page."""

import io
import re
import xml.etree.ElementTree as ET
from typing import Any

# matplotlib draws in fixed colours only. Each paint of the page has a stand-in, which
# is put back afterwards, so that one picture serves a light and a dark page.
PAINTS = (
    "currentColor",
    "var(--grid)",
    *(f"var(--paint-{index})" for index in range(8)),
)
_STAND_INS = {f"#0101{index:02x}": paint for index, paint in enumerate(PAINTS)}
_COLOUR = re.compile("|".join(_STAND_INS))
# Before matplotlib 3.11 `font: 11px 'DejaVu Sans', ...`, then a property for each.
_FONT = re.compile(r"\bfont: [^;]*?([\d.]+px)[^;]*")
_FAMILY = re.compile(r"\bfont-family: [^;]*;? *")
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def stand_in(paint: str) -> str:
    """The colour to draw in for one of `PAINTS`."""
    return f"#0101{PAINTS.index(paint):02x}"


def inline_svg(figure: Any, name: str, title: str, description: str) -> str:
    """Draws a figure and makes it part of a page.

    Args:
        figure: a `matplotlib.figure.Figure`.
        name: of letters; it begins every id, as ids must differ within a page.
        title, description: what people hear who can't see the picture.

    Returns:
        The text of the `svg` element, without namespaces, metadata, styles or a size of its own.
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
        kept = {_local(key): _of_the_page(value, name) for key, value in element.attrib.items()}
        if "id" in kept:
            kept["id"] = f"{name}-{kept['id']}"
        element.attrib.clear()
        element.attrib.update(kept)
    _label(root, name, title, description)
    return ET.tostring(root, encoding="unicode", method="html")


def _local(name: str) -> str:
    return name.rpartition("}")[2]


def _of_the_page(value: str, name: str) -> str:
    value = _COLOUR.sub(lambda found: _STAND_INS[found[0]], value)
    value = _FAMILY.sub("", _FONT.sub(r"font-size: \1", value))
    if value.startswith("#"):
        return f"#{name}-{value[1:]}"
    return value.replace("url(#", f"url(#{name}-")


def _label(root: ET.Element, name: str, title: str, description: str) -> None:
    kept = {"viewBox": root.get("viewBox", ""), "class": "plot", "role": "img"}
    root.attrib.clear()
    root.attrib.update(kept | {"aria-labelledby": f"{name}-title {name}-desc"})
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        child = ET.Element(tag, {"id": f"{name}-{tag}"})
        child.text = text
        root.insert(index, child)
