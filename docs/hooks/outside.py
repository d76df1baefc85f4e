"""Links that leave docs/ (to the code, to results) name the file: the site has no copy of it."""

import posixpath
import re

_LINK = re.compile(r"\[([^\]]+)\]\((\.\.?/[^)#\s]+)(?:#[^)\s]*)?\)")


def on_page_markdown(markdown, page, **_):
    """Replaces each such link by its words, and the file's path in the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def replaced(link):
        path = posixpath.normpath(posixpath.join("docs", folder, link[2]))
        if path.startswith("docs/"):
            return link[0]
        return link[1] if path in link[1] else f"{link[1]} (`{path}` in the repository)"

    return _LINK.sub(replaced, markdown)
