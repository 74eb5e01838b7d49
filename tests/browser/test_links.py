"""Every link inside the site has a target; those that leave it are listed."""

from __future__ import annotations

from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from visiting import PAGES, SITE

pytestmark = pytest.mark.browser


class Anchors(HTMLParser):
    """The links of a page, and the places in it that a link can lead to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.places |= {named[key] for key in ("id", "name") if named.get(key)}
        if tag == "a" and named.get("href"):
            self.links.add(named["href"])


@cache
def anchors(page: Path) -> Anchors:
    return Anchors(page)


@pytest.mark.parametrize("path", PAGES)
def test_internal_links_have_their_targets(path):
    page = SITE / path
    lost = []
    for link in anchors(page).links:
        parts = urlsplit(link)
        if parts.scheme or parts.netloc or (path == "404.html" and link.startswith("/")):
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        named = parts.fragment and target.suffix == ".html"
        if not target.is_file() or (
            named and unquote(parts.fragment) not in anchors(target).places
        ):
            lost.append(link)
    assert lost == []


def test_external_links_are_secure_and_listed():
    """The list is for a person, or a machine with a network: _build/external_links.txt."""
    links = {link for path in PAGES for link in anchors(SITE / path).links}
    external = sorted(link for link in links if urlsplit(link).netloc)
    assert len(external) > 20
    assert [link for link in external if urlsplit(link).scheme != "https"] == []
    (SITE.parent / "external_links.txt").write_text("\n".join(external) + "\n")
