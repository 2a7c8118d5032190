"""A browser where this machine has one: the same for all tests of a process, which may hold no two."""

from __future__ import annotations

import os
import shutil

import pytest

CHROMIUM = os.environ.get("WORKBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
LEFT = "net::ERR_ABORTED"  # what a request ends with when the page is left before its answer
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.fixture(scope="session")
def chromium():
    if CHROMIUM is None:
        pytest.skip("no chromium on the path; set WORKBENCH_CHROMIUM to one to run the browser tests")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def window(chromium):
    """One window for all tests: what is served is loaded once."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def tab(window):
    """A page that must load everything and say nothing on its console; `tab.said` is what it said."""
    page = window.new_page()
    page.set_default_timeout(60_000)  # a machine that is busy with other things is slow, not wrong
    page.said = []
    page.on("console", lambda message: message.type in ("error", "warning") and page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("requestfailed", lambda request: request.failure != LEFT and page.said.append(request.failure))
    page.on(
        "response", lambda response: response.status >= 400 and page.said.append(f"{response.status} {response.url}")
    )
    yield page
    page.close()
