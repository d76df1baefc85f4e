"""The documents' links lead somewhere, and nothing that is public is without a page."""

import importlib
import importlib.util
import pathlib
import re
import types

import pytest

import tfaccel
from tfaccel.passes import INFERENCE_PASSES, PASSES

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(ROOT).as_posix() for page in DOCS.rglob("*.md"))
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "BUILD_NOTES.md", *PAGES]
FENCED = re.compile(r"^```.*?^```", flags=re.S | re.M)
# Public modules, whose names are told one by one.
MODULES = {"data", "ops", "passes"}


def text_of(path):
    return (ROOT / path).read_text(encoding="utf-8")


def prose_of(path):
    """A document without its blocks of code."""
    return FENCED.sub("", text_of(path))


def links_of(path):
    """Where the links of a document lead, addresses on other machines left out."""
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "code", prose_of(path)))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def anchors_of(path):
    """The anchors of a document's headings, as GitHub and the site make them."""
    seen = {}
    for heading in re.findall(r"^#+ +(.+?)\s*$", prose_of(path), flags=re.M):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        anchor = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = seen[anchor] = seen.get(anchor, -1) + 1
        yield f"{anchor}-{count}" if count else anchor


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    folder = (ROOT / document).parent
    for link in links_of(document):
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / document
        assert target.exists(), link
        if anchor and target.suffix == ".md":
            assert anchor in anchors_of(target.relative_to(ROOT)), link


@pytest.mark.parametrize("document", PAGES)
def test_files_that_are_named_exist(document):
    named = r"`((?:tfaccel|tests|benchmarks|examples)/[\w./-]+)`"
    for path in re.findall(named, text_of(document)):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation_and_every_entry_is_a_page():
    named = re.findall(r"[ :-] ([\w/-]+\.md)$", text_of("mkdocs.yml"), flags=re.M)
    assert sorted(f"docs/{page}" for page in named) == PAGES


def test_every_pass_has_a_page():
    for kind in (*PASSES, *INFERENCE_PASSES):
        page = text_of(f"docs/passes/{kind.name}.md")
        assert page.startswith(f"# `{kind.name}`\n")
        for section in ("What it does", "When it helps", "What it refuses", "Numbers", "Example"):
            assert f"\n## {section}\n" in page, (kind.name, section)


def referred_to():
    pages = [text_of(page) for page in PAGES if page.startswith("docs/api/")]
    return [name for page in pages for name in re.findall(r"^::: (\S+)$", page, flags=re.M)]


def test_every_public_name_is_in_the_api_reference():
    names = [name for name in tfaccel.__all__ if name not in {*MODULES, "__version__"}]
    wanted = {f"tfaccel.{name}" for name in names}
    for module in MODULES:
        public = getattr(tfaccel, module).__all__
        kinds = {name for name in public if not name.endswith("PASSES")}
        wanted |= {f"tfaccel.{module}.{name}" for name in kinds}
    # The function `tfaccel.ops.kernels` has the name of a folder, which is not meant.
    told = {name.replace("tfaccel.ops.api.", "tfaccel.ops.") for name in referred_to()}
    assert wanted <= told


@pytest.mark.parametrize("name", referred_to())
def test_a_name_in_the_api_reference_is_there(name):
    parts = name.split(".")
    found = importlib.import_module(parts[0])
    for index, part in enumerate(parts[1:], 2):
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:index]))
        found = getattr(found, part, None)
    assert found is not None


def said():
    """All sentences of the code, put together where they stand in several lines."""
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "tfaccel").rglob("*.py"))
    return re.sub(r'"\s+f?"', "", "\n".join(sources))


def test_what_documents_quote_is_what_tfaccel_says():
    quoting = [page for page in PAGES if page.startswith("docs/passes/")]
    words, strange = said(), []
    for page in ("docs/troubleshooting.md", *quoting):
        text = prose_of(page).replace("\\`", "\0")  # a backtick that is said
        prose = re.sub(r"`[^`]*`|\n {4}.*", "", text).replace("\0", "`")
        quoted = re.findall(r'"([^"]+)"', re.sub(r"\s+", " ", prose))
        parts = [part.strip(" .") for quote in quoted for part in quote.split("...")]
        strange += [(page, part) for part in parts if part not in words]
    assert not strange


def test_the_site_names_files_that_it_has_no_copy_of():
    spec = importlib.util.spec_from_file_location("pages", DOCS / "hooks" / "pages.py")
    assert spec is not None and spec.loader is not None
    pages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pages)
    page = types.SimpleNamespace(file=types.SimpleNamespace(src_uri="design/house.md"))
    text = "[code](../../tfaccel/__init__.py#L3), [more](../passes/index.md)\n| `a\\|b` |"
    shown = "code (`tfaccel/__init__.py` in the repository), [more](../passes/index.md)\n| `a|b` |"
    assert pages.on_page_markdown(text, page) == shown


def luminance(colour):
    """As WCAG 2 defines it, of #rrggbb."""
    shares = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    red, green, blue = (s / 12.92 if s <= 0.03928 else ((s + 0.055) / 1.055) ** 2.4 for s in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_the_style_of_the_site_is_there_and_can_be_read_in_the_dark():
    [style] = re.findall(r"^extra_css: \[(.+)\]$", text_of("mkdocs.yml"), flags=re.M)
    colours = re.findall(r"#[0-9a-f]{6}", text_of(f"docs/{style}"))
    behind_code = luminance("#272a35")  # as the theme has it in the dark
    assert colours
    for colour in colours:
        assert (luminance(colour) + 0.05) / (behind_code + 0.05) >= 4.5, colour
