"""What the book does to docstrings before Sphinx reads them."""

import sys
from pathlib import Path

import pytest

EXTENSIONS = str(Path(__file__).resolve().parents[2] / "book" / "_ext")


@pytest.fixture
def mend(monkeypatch):
    monkeypatch.syspath_prepend(EXTENSIONS)
    from landscape_course import mend_docstring

    def mended(*lines):
        held = list(lines)
        mend_docstring(None, "class", "x", None, None, held)
        return held

    yield mended
    sys.modules.pop("landscape_course", None)


def test_attributes_that_share_a_line_get_one_each_with_all_of_their_text(mend):
    assert mend(
        "First.",
        ":ivar low, high: The ends, nan where there are too few",
        "    samples.",
        ":vartype low, high: float",
        ":ivar n: Samples.",
    ) == [
        "First.",
        ":ivar low: The ends, nan where there are too few",
        "    samples.",
        ":ivar high: The ends, nan where there are too few",
        "    samples.",
        ":vartype low: float",
        ":vartype high: float",
        ":ivar n: Samples.",
    ]


def test_initials_begin_no_list(mend):
    assert mend("N. S. Keskar and others", ":param probes: K.", "A list.", "1. one") == [
        "\\N. S. Keskar and others",
        ":param probes: \\K.",
        "A list.",
        "1. one",
    ]
