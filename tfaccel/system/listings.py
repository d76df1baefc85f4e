"""The kernel's own listings below `/proc` and `/sys`."""

import pathlib


def text_of(path: pathlib.Path) -> str:
    """What is in a file; empty where the system has none, or doesn't let it be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
