"""The content policy: nothing from elsewhere, nothing to elsewhere, and frames only where they are named."""

from __future__ import annotations

import pytest

from tests.synthetic_run import DEMO, write_run
from workbench.app import Access, build_app
from workbench.app.server.content_policy import checked_origin
from workbench.heads import WorkbenchError


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", DEMO["full"], upto=1)


def policy_of(app, address):
    answer = app.server.test_client().get(address, headers={"Host": "127.0.0.1"})
    rules = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    return {name: values.split() for name, values in rules.items()}


def test_a_page_loads_and_asks_for_what_the_app_serves_alone(path):
    policy = policy_of(build_app([path]), "/overview")
    assert policy["default-src"] == ["'none'"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["script-src"][:2] == ["'self'", "'unsafe-eval'"]
    assert all(word.startswith("'sha256-") for word in policy["script-src"][2:])
    assert not any("http" in value or value == "*" for values in policy.values() for value in values)


@pytest.mark.parametrize("prefix", ["/", "/x/"])
def test_named_origins_may_frame_single_cards_and_no_page(path, prefix):
    app = build_app([path], access=Access(embedders=("https://Notes.example.org", "http://localhost:*"), prefix=prefix))
    framing = policy_of(app, f"{prefix}embed/grid?run=run")["frame-ancestors"]
    assert framing == ["'self'", "https://notes.example.org", "http://localhost:*"]
    assert policy_of(app, f"{prefix}overview")["frame-ancestors"] == ["'self'"]


def test_notebooks_on_this_machine_may_frame_what_show_opens(path):
    framing = policy_of(build_app([path], access=Access(has_notebooks=True)), "/")["frame-ancestors"]
    assert framing == ["'self'", "http://127.0.0.1:*", "http://localhost:*"]


@pytest.mark.parametrize(
    "origin",
    ["*", "https://*", "notes.example.org", "https://notes.example.org/", "file://x", "https://a b", "https://a;b", ""],
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(WorkbenchError, match="is no origin; write scheme, host and port"):
        Access(embedders=(origin,))


@pytest.mark.parametrize("origin", ["http://localhost:8888", "https://a.b-c.org", "http://[::1]:80", "http://x:*"])
def test_origins_are_taken_as_they_are(origin):
    assert checked_origin(origin) == origin
