"""Pages that everyone can read: accessible and described."""

from __future__ import annotations

import pytest
from axe_playwright_python.sync_playwright import Axe
from visiting import CHAPTERS

GRAVE = ("serious", "critical")
pytestmark = pytest.mark.browser

# Code and tables have thousands of words in a dozen colours. Of those in one colour, on one
# ground, in one size the contrast is the same: the first stands for all, the others are hidden.
HIDE_REPEATED = """() => {
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
  };
  const seen = new Set();
  document.querySelectorAll('[data-repeated]').forEach(e => e.style.visibility = '');
  for (const e of document.querySelectorAll('.highlight span, dl.py *, table.dataframe *')) {
    if (e.childElementCount || !e.textContent.trim()) continue;
    const s = getComputedStyle(e);
    const key = [s.color, ground(e), s.fontSize, s.fontWeight, s.opacity, s.filter].join();
    if (e.toggleAttribute('data-repeated', seen.has(key))) e.style.visibility = 'hidden';
    seen.add(key);
  }
}"""


def grave(page, rules):
    """What of it is serious."""
    options = rules | {"resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    return [(v["id"], v["nodes"][0]["html"]) for v in found if v["impact"] in GRAVE]


@pytest.mark.parametrize("path", CHAPTERS)
def test_page_has_no_grave_accessibility_findings(visit, path):
    here = visit(viewport={"width": 1400, "height": 900}, color_scheme="light")
    page = here.open(path)
    assert grave(page, {"rules": {"color-contrast": {"enabled": False}}}) == []
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme, reduced_motion="reduce")
        page.wait_for_function("t => document.documentElement.dataset.theme === t", arg=theme)
        page.wait_for_timeout(500)  # colours that change slowly are not read on their way
        page.evaluate(HIDE_REPEATED)
        assert grave(page, {"runOnly": ["color-contrast"]}) == []
    images = page.locator("article img").evaluate_all(
        "all => all.map(i => i.getAttribute('alt'))"
    )
    assert not [alt for alt in images if alt is None or alt.endswith((".png", ".svg"))]


def test_the_accessibility_check_finds_what_is_there(visit):
    page = visit().open("notebooks/01_first_landscape.html")
    page.evaluate("document.body.append(document.createElement('button'))")
    assert [rule for rule, _ in grave(page, {})] == ["button-name"]
    page.evaluate(
        "document.querySelector('.highlight:last-of-type span:last-of-type').style.color = "
        "'rgb(200, 200, 200)'"
    )
    page.evaluate(HIDE_REPEATED)
    pale = grave(page, {"runOnly": ["color-contrast"]})
    assert [rule for rule, _ in pale] == ["color-contrast"]
