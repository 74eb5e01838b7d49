"""Print the book, built as one page, to paper: the whole of it, and its theory part alone.

Called as ``python book/print_book.py _build/singlehtml/index.html _build/pdf``.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from playwright.sync_api import PdfMargins, sync_playwright
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MARGINS = PdfMargins(top="18mm", bottom="18mm", left="16mm", right="16mm")
FOOTER = (
    '<div style="width: 100%; text-align: center; font: 8px sans-serif; color: #666">'
    '<span class="pageNumber"></span></div>'
)


HEADINGS = "h1, h2, h3, h4, h5, h6"


def chromium() -> str | None:
    """The browser that CHROMIUM names, or the system's; None for Playwright's own."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def print_page(page: Path, target: Path) -> list[str]:
    """Print one page of HTML, with an outline and page numbers; the text of its headings."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        view = browser.new_page(color_scheme="light")
        view.goto(page.resolve().as_uri(), timeout=300_000)
        answers = "document.querySelectorAll('details:not(.hide)')"  # hidden code stays hidden
        view.evaluate(f"{answers}.forEach(each => each.open = true)")
        view.evaluate("document.querySelectorAll('.headerlink').forEach(each => each.remove())")
        view.wait_for_function(
            "window.MathJax?.startup?.promise?.then(() => true)", timeout=300_000
        )
        view.wait_for_load_state("networkidle")
        view.emulate_media(media="print")
        shown = "all => all.filter(e => e.checkVisibility()).map(e => e.textContent)"
        headings = [
            " ".join(text.split()) for text in view.locator(HEADINGS).evaluate_all(shown)
        ]
        view.pdf(
            path=target, format="A4", scale=0.8, margin=MARGINS, print_background=True,
            tagged=True, outline=True, display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
        )  # fmt: skip
        browser.close()
    return headings


def retitle(book: Path, headings: list[str]) -> None:
    """Write the headings into the outline: Chromium joins and doubles lines that wrap.

    Raises
    ------
    ValueError
        If there are more or fewer of them.
    """
    writer = PdfWriter(clone_from=book)
    entries = list(_entries(writer.root_object["/Outlines"]))
    if len(entries) != len(headings):
        raise ValueError(f"{len(entries)} entries in the outline for {len(headings)} headings")
    for entry, heading in zip(entries, headings, strict=True):
        entry[NameObject("/Title")] = TextStringObject(heading)
    writer.write(book)


def _entries(parent: Any) -> Iterator[Any]:
    child = parent.get("/First")
    while child is not None:
        entry = child.get_object()
        yield entry
        yield from _entries(entry)
        child = entry.get("/Next")


def part(book: Path, caption: str, target: Path) -> None:
    """Copy the pages of one part of the table of contents, by the book's outline.

    Raises
    ------
    ValueError
        If the outline does not name the part's first chapter.
    """
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text())["parts"]
    at = next(i for i, each in enumerate(toc) if each["caption"] == caption)
    reader = PdfReader(book)
    starts: dict[str, int] = {}
    for entry in _flat(reader.outline):
        starts.setdefault(entry.title, reader.get_destination_page_number(entry) or 0)
    first, after = (chapter_title(toc[i]["chapters"][0]["file"]) for i in (at, at + 1))
    for title in (first, after):
        if title not in starts:
            raise ValueError(f"the book's outline has no {title!r}, only {list(starts)[:20]}")
    writer = PdfWriter()
    writer.append(book, pages=(starts[first], starts[after]))
    writer.write(target)


def _flat(outline: list[Any]) -> list[Any]:
    return [e for x in outline for e in (_flat(x) if isinstance(x, list) else [x])]


def chapter_title(file: str) -> str:
    """The title of a page of the book."""
    text = (ROOT / "book" / f"{file}.md").read_text()
    return next(line for line in text.splitlines() if line.startswith("# "))[2:]


if __name__ == "__main__":
    source, folder = map(Path, sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    headings = print_page(source, folder / "loss_landscapes.pdf")
    retitle(folder / "loss_landscapes.pdf", headings)
    part(folder / "loss_landscapes.pdf", "Theory", folder / "theory.pdf")
    for path in sorted(folder.glob("*.pdf")):
        print(f"{path}: {len(PdfReader(path).pages)} pages, {path.stat().st_size / 1e6:.1f} MB")
