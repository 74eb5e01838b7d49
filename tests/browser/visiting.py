"""The built site, served below the path of its public address, and a visitor who minds."""

from __future__ import annotations

import tomllib
from http.server import SimpleHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlsplit

from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
URL = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Documentation"]
HOME = urlsplit(URL).path
PAGES = sorted(
    str(path.relative_to(SITE))
    for path in SITE.rglob("*.html")
    if "_static" not in path.parts and path.name not in ("genindex.html",)
)
ARGUMENTS = [
    "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]  # fmt: skip
CHAPTERS = [p for p in PAGES if not p.startswith("_modules")]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


class Quiet(SimpleHTTPRequestHandler):
    """The site below the path of its public address: the page for lost addresses needs it."""

    def translate_path(self, path: str) -> str:
        return super().translate_path("/" + path.removeprefix(HOME))

    def log_message(self, *_: object) -> None:
        pass


class Visit:
    """A page with what it said and asked for on the way."""

    def __init__(self, browser: Browser, address: str, **options: object) -> None:
        self.page: Page = browser.new_page(**options)
        self.address = address
        self.problems: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        self.page.on("request", self._request)
        self.page.on("requestfailed", lambda r: self.problems.append(f"failed: {r.url}"))
        self.page.on("response", self._response)

    def _console(self, message) -> None:
        if message.type == "error":
            self.problems.append(f"console: {message.text}")

    def _request(self, request) -> None:
        if not request.url.startswith((self.address, "data:", "blob:")):
            self.problems.append(f"external: {request.url}")

    def _response(self, response) -> None:
        if response.status >= 400:
            self.problems.append(f"{response.status}: {response.url}")

    def open(self, path: str) -> Page:
        self.page.goto(self.address + path)
        self.page.wait_for_load_state("networkidle")
        return self.page

    def read_to_the_end(self) -> None:
        """Bring into view what is drawn or fetched only then, and wait for it."""
        for late in self.page.query_selector_all(".landscape-live, img[loading=lazy]"):
            late.evaluate("e => e.scrollIntoView({block: 'center'})")
            done = "e => e.dataset.ready || e.complete || !e.checkVisibility()"
            self.page.wait_for_function(done, arg=late, timeout=120_000)
