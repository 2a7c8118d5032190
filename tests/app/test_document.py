"""The document has the page laid out that the browser shows, so that no other page's figures are waited for."""

from __future__ import annotations

import json

import pytest

from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.app.document import LayoutOfPage
from workbench.app.server.serving import open_content


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", DEMO["full"], upto=1)


@pytest.mark.parametrize(
    ("address", "page"),
    [
        ("http://127.0.0.1:8050/head?run=run", "head"),
        ("http://127.0.0.1:8050/user/me/proxy/8050/plan/", "plan"),
        ("http://127.0.0.1:8050/embed/history?run=run", "head"),
        ("http://127.0.0.1:8050/embed/grid?page=compare", "compare"),
        ("http://127.0.0.1:8050/embed/typo", "overview"),
        ("http://127.0.0.1:8050/typo", "overview"),
        ("http://127.0.0.1:8050/", "overview"),
        ("http://127.0.0.1:8050", "overview"),
        ("about:blank", "overview"),
        ("", "overview"),
    ],
)
def test_the_page_of_an_address_is_laid_out(path, address, page):
    layout = LayoutOfPage(open_content([path], []))
    assert layout.page_of(address) == page


def test_the_browser_is_sent_the_page_that_it_shows_and_no_other(path):
    client = build_app([path]).server.test_client()
    for referer, page in (("http://127.0.0.1/jobs?run=run", "jobs"), ("", "overview")):
        headers = {"Host": "127.0.0.1", "Referer": referer}
        laid_out = json.dumps(client.get("/_dash-layout", headers=headers).get_json())
        assert ('"id": "scans"' in laid_out) == (page == "jobs")
        assert ('"id": "strips"' in laid_out) == (page == "overview")
