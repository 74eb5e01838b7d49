"""The built site in a real browser: complete, self-contained, and alive without a kernel."""

from __future__ import annotations

import gzip
import tomllib
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from visiting import NOTEBOOKS, PAGES, ROOT, SITE, URL

pytestmark = pytest.mark.browser


def test_the_site_has_its_pages():
    expected = {
        "index.html",
        "api.html",
        "api/curvature.html",
        "references.html",
        "search.html",
        "how_to_use.html",
        "notebooks/01_first_landscape.html",
        "notebooks/02_curvature.html",
        "notebooks/03_sharpness.html",
        "notebooks/04_paths.html",
        "notebooks/05_noise.html",
        "notebooks/06_your_own_model.html",
        "studies.html",
        "notebooks/07_fa_regularization.html",
        "notebooks/08_width.html",
        "notebooks/09_noise_regimes.html",
        "notebooks/10_resnet_vs_cnn.html",
        "ledger.html",
        "glossary.html",
        "404.html",
        "theory/flatness.html",
        "theory/estimation.html",
        "theory/sgd_as_inference.html",
        "theory/connectivity.html",
        "theory/three_statements.html",
        "theory/pac_bayes.html",
    }
    assert expected <= set(PAGES)


def test_the_map_of_the_site_names_every_page():
    tree = ElementTree.parse(SITE / "sitemap.xml").getroot()
    named = {place.text for place in tree.findall(".//{*}loc")}
    assert all(place.startswith(URL) for place in named)
    served = ("404.html", "search.html", "prf-prf.html")  # made by Sphinx, not chapters
    chapters = {p for p in PAGES if p not in served and not p.startswith("_modules")}
    assert {URL + path for path in chapters} <= named
    assert not {URL + path for path in served} & named


def test_a_shared_link_has_a_picture_of_its_own(visit):
    page = visit().open("notebooks/02_curvature.html")
    image = page.locator("meta[property='og:image']").get_attribute("content")
    assert (SITE / image.removeprefix(URL)).is_file()
    title = page.locator("meta[property='og:title']").get_attribute("content")
    assert title.startswith("What is curvature")


def test_a_lost_address_leads_back(visit):
    here = visit()
    page = here.open("404.html")
    page.locator("article a[href$='index.html']").click()
    page.wait_for_load_state("networkidle")
    assert "geometry of loss landscapes" in page.locator("h1").first.text_content()
    assert here.problems == []


def test_terms_lead_to_the_glossary(visit):
    here = visit()
    page = here.open("theory/estimation.html")
    page.locator("a[href*='glossary.html#term-']").first.click()
    page.wait_for_load_state("networkidle")
    assert page.locator("dt:target, dt :target").count() == 1
    assert here.problems == []


@pytest.mark.parametrize("path", PAGES)
def test_page_is_clean_self_contained_light_and_fits(visit, path):
    weights = {}

    def weigh(response):
        if "plotly.min.js" not in response.url:
            body = response.body()
            text = response.headers.get("content-type", "").startswith(
                ("text/", "application/")
            )
            weights[response.url] = len(gzip.compress(body)) if text else len(body)

    here = visit(viewport={"width": 1400, "height": 900}, color_scheme="light")
    here.page.on("requestfinished", lambda request: weigh(request.response()))
    page = here.open(path)
    for width, theme in [(1400, "light"), (1400, "dark"), (400, "dark"), (400, "light")]:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=theme)
        here.read_to_the_end()
        page.wait_for_function("t => document.documentElement.dataset.theme === t", arg=theme)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert here.problems == []
    assert page.locator(".merror, .problematic, .MathJax_Error").count() == 0
    heaviest = sorted(weights.items(), key=lambda item: -item[1])[:3]
    assert sum(weights.values()) <= 2 * 2**20, heaviest


@pytest.mark.parametrize("path", ["index.html", "notebooks/01_first_landscape.html"])
@pytest.mark.parametrize("width", [1400, 400])
def test_the_surface_turns_when_it_is_dragged(visit, path, width):
    here = visit(viewport={"width": width, "height": 900})
    page = here.open(path)
    figure = page.locator(".landscape-live").first
    figure.scroll_into_view_if_needed()
    drawn = "document.querySelector('.landscape-live').dataset.ready"
    page.wait_for_function(drawn, timeout=120_000)
    assert not page.locator(".landscape-still").first.is_visible()
    scene = figure.locator(".gl-container canvas").first
    scene.scroll_into_view_if_needed()
    camera = (
        "() => { const s = document.querySelector('.landscape-live .js-plotly-plot')"
        "._fullLayout.scene._scene; return s.getCamera().eye; }"
    )
    before, picture = page.evaluate(camera), scene.screenshot()
    box = scene.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 90, y + 20, steps=8)
    page.mouse.up()
    page.wait_for_timeout(400)
    after = page.evaluate(camera)
    assert abs(after["x"] - before["x"]) + abs(after["y"] - before["y"]) > 0.1
    assert scene.screenshot() != picture
    assert here.problems == []


@pytest.mark.parametrize("width", [1400, 400])
def test_the_density_follows_its_slider(visit, width):
    here = visit(viewport={"width": width, "height": 900})
    page = here.open("notebooks/02_curvature.html")
    figure = page.locator(".landscape-live").first
    figure.scroll_into_view_if_needed()
    page.wait_for_function("e => e.dataset.ready", arg=figure.element_handle(), timeout=120_000)
    label = figure.locator(".slider-container text", has_text="Lanczos steps: ").first
    rail = figure.locator(".slider-rail-touch-rect").first
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    seen = []
    for part in (0.98, 0.5, 0.02):
        page.mouse.click(box["x"] + part * box["width"], box["y"] + box["height"] / 2)
        page.wait_for_timeout(400)
        number = int(label.text_content().removeprefix("Lanczos steps: "))
        legend = "\n".join(figure.locator(".legendtext").all_text_contents())
        assert f"density, {number} step" in legend
        lines = figure.locator(".scatterlayer .js-line").evaluate_all(
            "lines => lines.map(line => line.getAttribute('d')).join()"
        )
        seen.append((number, lines))
    numbers, curves = zip(*seen, strict=True)
    assert numbers[0] > numbers[1] > numbers[2] == 1
    assert len(set(curves)) == 3
    keys = figure.get_by_role("slider")  # plotly's own cannot be reached by keyboard
    assert keys.get_attribute("aria-valuetext") == "1"
    keys.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(400)
    assert keys.get_attribute("aria-valuetext") == "2"
    assert label.text_content() == "Lanczos steps: 2"
    assert here.problems == []


@pytest.mark.parametrize("width", [1400, 400])
@pytest.mark.parametrize(
    ("chapter", "name", "place"),
    [
        ("03_sharpness", "factor", 0),
        ("04_paths", "t", 0),
        ("05_noise", "learning rate", 0),
        ("07_fa_regularization", "weight", 0),
        ("08_width", "setting", 0),
        ("09_noise_regimes", "run", 0),
        ("10_resnet_vs_cnn", "network", 0),
    ],
)
def test_the_explorer_of_a_chapter_moves_by_keyboard_and_by_mouse(
    visit, chapter, name, place, width
):
    here = visit(viewport={"width": width, "height": 900})
    page = here.open(f"notebooks/{chapter}.html")
    figure = page.locator(".landscape-live").nth(place)
    figure.scroll_into_view_if_needed()
    page.wait_for_function("e => e.dataset.ready", arg=figure.element_handle(), timeout=120_000)
    label = figure.locator(".slider-container text", has_text=f"{name}: ").first
    seen = [(label.text_content(), figure.screenshot())]
    keys = figure.get_by_role("slider")
    assert keys.get_attribute("aria-label") == name
    keys.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)
    assert label.text_content() == f"{name}: {keys.get_attribute('aria-valuetext')}"
    seen.append((label.text_content(), figure.screenshot()))
    rail = figure.locator(".slider-rail-touch-rect").first
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    page.mouse.click(box["x"] + 0.98 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_timeout(500)
    seen.append((label.text_content(), figure.screenshot()))
    labels, pictures = zip(*seen, strict=True)
    assert len(set(labels)) == len(set(pictures)) == 3
    assert here.problems == []


def test_an_explorer_is_stacked_when_a_page_becomes_narrow_and_set_side_by_side_again(visit):
    here = visit(viewport={"width": 1400, "height": 900})
    page = here.open("notebooks/05_noise.html")
    figure = page.locator(".landscape-live").first
    figure.scroll_into_view_if_needed()
    shape = (
        "e => { const l = e.dataset.ready && e.querySelector('.js-plotly-plot')._fullLayout;"
        "return l ? l.height > l.width : null; }"
    )
    for width, stacked in [(1400, False), (400, True), (1400, False)]:
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(
            f"e => ({shape})(e) === {str(stacked).lower()}",
            arg=figure.element_handle(),
            timeout=60_000,
        )
        slider = figure.get_by_role("slider")
        assert slider.count() == 1
        if width == 1400 and slider.input_value() == "0":
            slider.press("End")
            chosen, at = slider.input_value(), slider.get_attribute("aria-valuetext")
        else:  # where it was
            page.wait_for_function(
                "([e, value]) => e.querySelector('input[type=range]').value === value",
                arg=[figure.element_handle(), chosen],
            )
            assert slider.get_attribute("aria-valuetext") == at
            drawn = "e => e.querySelector('.js-plotly-plot')._fullLayout.sliders[0].active"
            assert figure.evaluate(drawn) == int(chosen) > 0
    assert here.problems == []


def test_without_scripts_the_still_is_there(visit):
    here = visit(java_script_enabled=False)
    page = here.open("index.html")
    assert page.locator(".landscape-still img").first.is_visible()


def test_plotly_is_fetched_only_where_it_is_needed(visit):
    here = visit()
    fetched = []
    here.page.on("request", lambda request: fetched.append(request.url))
    here.open("api/figures.html")
    assert not any("plotly" in url for url in fetched)


def test_search_finds_a_word_of_the_book(visit):
    here = visit()
    page = here.open("search.html?q=Hutchinson")
    page.wait_for_selector("#search-results li a")
    assert here.problems == []


def colab(name: str) -> str:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    path = urlsplit(project["Repository"]).path
    return f"https://colab.research.google.com/github{path}/blob/main/notebooks/{name}.ipynb"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_chapter_opens_in_colab_from_its_source(visit, name):
    page = visit().open(f"notebooks/{name}.html")
    link = page.locator("a[href*='colab.research.google.com']").first.get_attribute("href")
    assert link == colab(name)


def test_the_landing_page_leads_to_every_chapter_and_into_colab(visit):
    here = visit(viewport={"width": 1400, "height": 900})
    page = here.open("index.html")
    for name in NOTEBOOKS:
        card = page.locator(".sd-card", has=page.locator(f"a[href*='{name}.html']"))
        assert card.locator(".landscape-colab").get_attribute("href") == colab(name)
        picture = card.locator(".landscape-picture img")
        if picture.count():  # the report's card shows its three lines
            picture.scroll_into_view_if_needed()
            assert picture.evaluate("image => image.naturalWidth") > 300
    assert page.locator(".landscape-picture").count() == len(NOTEBOOKS) - 1
    # The link to Colab lies above the one that covers the card.
    link = page.locator(".landscape-colab").first
    link.scroll_into_view_if_needed()
    box = link.bounding_box()
    spot = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    found = page.evaluate("([x, y]) => document.elementFromPoint(x, y).className", spot)
    assert "landscape-colab" in found
    assert here.problems == []


def test_the_theme_button_turns_the_page_and_is_remembered(visit):
    here = visit(viewport={"width": 1400, "height": 900}, color_scheme="light")
    page = here.open("index.html")
    theme = "document.documentElement.dataset.theme"
    shade = "getComputedStyle(document.body).backgroundColor"
    seen = {}
    for _ in range(3):
        seen[page.evaluate(theme)] = page.evaluate(shade)
        page.locator("button.theme-switch-button").first.click()
        page.wait_for_timeout(300)
    assert len(set(seen.values())) == 2
    while page.evaluate(theme) != "dark":
        page.locator("button.theme-switch-button").first.click()
    page.goto(page.url.replace("index.html", "glossary.html"))
    page.wait_for_load_state("networkidle")
    assert page.evaluate(theme) == "dark"
    assert here.problems == []


def test_a_phone_has_the_contents_behind_a_button(visit):
    here = visit(viewport={"width": 400, "height": 800})
    page = here.open("index.html")
    entry = page.locator(
        "nav.bd-links a[href*='08_width']:visible, dialog a[href*='08_width']:visible"
    )
    assert entry.count() == 0
    page.locator("button.primary-toggle").first.click()
    page.wait_for_timeout(500)
    entry.first.click()
    page.wait_for_load_state("networkidle")
    assert page.locator("h1").first.text_content().startswith("Width")
    assert here.problems == []


def test_every_claim_leads_to_its_figure():
    claims = yaml.safe_load((ROOT / "landscape_core/reference/claims.yaml").read_text())
    for claim in claims:
        path, _, anchor = claim["chapter"].partition("#")
        assert f'id="{anchor}"' in (SITE / path).read_text(), claim["claim"]
