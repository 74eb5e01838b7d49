"""A server for the built site, a browser, and visits to pages."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import ThreadingHTTPServer

import pytest
from playwright.sync_api import Browser, sync_playwright
from print_book import chromium
from visiting import ARGUMENTS, HOME, SITE, Quiet, Visit


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    assert (SITE / "index.html").exists(), "build the book first: jupyter-book build book"
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(SITE)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}{HOME}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    opened = []

    def open_visit(**options):
        opened.append(Visit(browser, address, **options))
        return opened[-1]

    yield open_visit
    for each in opened:
        each.page.close()
