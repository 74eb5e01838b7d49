"""Pages that everyone can read: accessible, described, and light."""

from __future__ import annotations

import gzip

import pytest
from axe_playwright_python.sync_playwright import Axe
from visiting import CHAPTERS

GRAVE = ("serious", "critical")
pytestmark = pytest.mark.browser


@pytest.mark.parametrize("path", CHAPTERS)
def test_page_has_no_grave_accessibility_findings(visit, path):
    here = visit(viewport={"width": 1400, "height": 900}, color_scheme="light")
    page = here.open(path)
    # What is not about colours is the same in the dark, and colours take most of the time.
    for theme, rules in (("light", {}), ("dark", {"runOnly": ["color-contrast"]})):
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.wait_for_function("t => document.documentElement.dataset.theme === t", arg=theme)
        page.wait_for_timeout(500)  # colours that change slowly are not read on their way
        options = rules | {"resultTypes": ["violations"]}
        found = Axe().run(page, options=options).response["violations"]
        told = [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in GRAVE]
        assert told == []
    images = page.locator("article img").evaluate_all(
        "all => all.map(i => i.getAttribute('alt'))"
    )
    assert not [alt for alt in images if alt is None or alt.endswith((".png", ".svg"))]


def test_the_accessibility_check_finds_what_is_there(visit):
    page = visit().open("index.html")
    page.evaluate("document.body.append(document.createElement('button'))")
    assert "button-name" in [v["id"] for v in Axe().run(page).response["violations"]]


@pytest.mark.parametrize("path", CHAPTERS)
def test_page_is_light(visit, path):
    weights = {}

    def weigh(response):
        if "plotly.min.js" not in response.url:
            body = response.body()
            text = response.headers.get("content-type", "").startswith(
                ("text/", "application/")
            )
            weights[response.url] = len(gzip.compress(body)) if text else len(body)

    here = visit(viewport={"width": 1400, "height": 900})
    here.page.on("requestfinished", lambda request: weigh(request.response()))
    here.open(path)
    here.read_to_the_end()
    heaviest = sorted(weights.items(), key=lambda item: -item[1])[:3]
    assert sum(weights.values()) <= 2 * 2**20, heaviest
