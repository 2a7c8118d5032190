"""Fixtures for tests in a browser: one Chromium for all tests of a process, skipped where there is none."""

from __future__ import annotations

import os
import re
import shutil

import pytest

CHROMIUM = os.environ.get("WORKBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ABORTED = "net::ERR_ABORTED"  # the reader left the page before the answer came
# Addresses on other machines.
LEAVES = re.compile(r"(https?|wss?)://(?!127\.0\.0\.1[:/]|localhost[:/])")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    # Pages share a process, which keeps what it has compiled.
    *("--process-per-site", "--js-flags=--no-flush-bytecode"),
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
    """One window for all tests, so that scripts are loaded and compiled once: its first page keeps their process."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    first = context.new_page()
    first.route("**", lambda route: route.fulfill(body="", content_type="text/html"))
    first.goto("http://127.0.0.1/")
    yield context
    context.close()


def watched_page(window):
    """A page; its `complaints` list errors and warnings of its console, failed requests, refused ones, and those that
    leave this machine, whether or not they get through."""
    page = window.new_page()
    page.set_default_timeout(60_000)  # a busy machine is slow
    page.complaints = []
    page.on("console", lambda message: message.type in ("error", "warning") and page.complaints.append(message.text))
    page.on("request", lambda request: LEAVES.match(request.url) and page.complaints.append(f"leaves: {request.url}"))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: request.failure != ABORTED and page.complaints.append(request.failure))
    page.on(
        "response",
        lambda response: response.status >= 400 and page.complaints.append(f"{response.status} {response.url}"),
    )
    return page


@pytest.fixture
def tab(window):
    """A page of its own, as `watched_page` makes it."""
    page = watched_page(window)
    yield page
    page.close()
