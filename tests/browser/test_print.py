"""The book on paper: an outline that says what the headings say, and a part on its own."""

from __future__ import annotations

import print_book
import pytest
from pypdf import PdfReader

pytestmark = pytest.mark.browser

LONG = "A heading that is so long that it cannot stand on a single line of the page, and wraps"
CHAPTER = '<section style="break-before: page"><h2>{}</h2><p>{}</p></section>'


def titles(book):
    def flat(outline):
        return [e for x in outline for e in (flat(x) if isinstance(x, list) else [x.title])]

    return flat(PdfReader(book).outline)


@pytest.fixture
def page(tmp_path):
    first, after = (print_book.chapter_title(name) for name in ("theory/flatness", "studies"))
    chapters = [(LONG, "one"), (first, "two"), ("Another", "three"), (after, "four")]
    body = "<h1>The book</h1>" + "".join(CHAPTER.format(*each) for each in chapters)
    mathjax = "<script>window.MathJax = {startup: {promise: Promise.resolve()}}</script>"
    path = tmp_path / "index.html"
    path.write_text(f"<html><head>{mathjax}</head><body>{body}</body></html>")
    return path


def test_the_outline_holds_the_headings_and_the_theory_part_its_pages(page, tmp_path):
    book = tmp_path / "book.pdf"
    headings = print_book.print_page(page, book)
    print_book.retitle(book, headings)
    assert titles(book) == headings
    assert headings[1] == LONG
    print_book.part(book, "Theory", tmp_path / "theory.pdf")
    text = [sheet.extract_text() for sheet in PdfReader(tmp_path / "theory.pdf").pages]
    assert len(text) == 2
    assert "two" in text[0]
    assert "three" in text[1]


def test_a_part_that_is_not_there_is_named(page, tmp_path):
    book = tmp_path / "book.pdf"
    page.write_text(page.read_text().replace("<h2>Runs that survive</h2>", ""))
    print_book.retitle(book, print_book.print_page(page, book))
    with pytest.raises(ValueError, match="the book's outline has no 'Runs that survive'"):
        print_book.part(book, "Theory", tmp_path / "theory.pdf")
