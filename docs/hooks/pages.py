"""Where the site is read otherwise than the documents on GitHub.

Links that leave docs/ (to the code, to results) name the file: the site has no copy of it. And the
site's tables want no backslash before a bar inside of code.
"""

import posixpath
import re

_ROW = re.compile(r"(?m)^\|.*$")
_LINK = re.compile(r"\[([^\]]+)\]\((\.\.?/[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown, page, **_):
    """Replaces each such link by its words, and the file's path in the repository."""
    markdown = _ROW.sub(_with_plain_bars, markdown)
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(link):
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        if path.startswith("docs/"):
            return link[0]
        return link[1] if path in link[1] else f"{link[1]} (`{path}` in the repository)"

    return _LINK.sub(replaced, markdown)


def _with_plain_bars(row):
    return re.sub(r"`[^`]*`", lambda code: code[0].replace("\\|", "|"), row[0])
