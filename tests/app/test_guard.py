"""Who is answered: with a token those who show it, under a proxy's prefix, to the names that were given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.synthetic_run import DEMO, write_run
from workbench.app import Access, build_app

FEW = replace(DEMO["full"], steps=(0, 64), detectors=("induction",))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", FEW)


@pytest.fixture(scope="module")
def app(path):
    return build_app([path], access=Access(hosts=("lab.example",), token="right-token", prefix="/x"))


def get(client, path, host="lab.example", **headers):
    return client.get(path, headers={"Host": host, **headers})


@pytest.mark.parametrize("asked", ["/", "/_dash-layout", "/assets/workbench.js", "/export/scores.csv"])
@pytest.mark.parametrize("shown", ["", "?token=wrong", "?token=", "?token=right-token-and-more"])
def test_nothing_is_answered_without_the_token(app, asked, shown):
    answer = get(app.server.test_client(), asked + shown)
    assert answer.status_code == 401
    assert b"token" in answer.data


def test_the_token_is_shown_once_kept_from_scripts_and_taken_out_of_the_address(app):
    client = app.server.test_client()
    answer = get(client, "/overview?run=run&token=right-token&detector=sink")
    assert answer.status_code == 302
    assert answer.headers["Location"] == "/x/overview?run=run&detector=sink"
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    allowed = get(client, "/x/overview", Cookie=cookie.split(";")[0])
    assert allowed.status_code == 200


def test_a_token_does_not_open_the_door_to_other_names_and_origins(app):
    cookie = {"Cookie": "workbench_token=right-token"}
    client = app.server.test_client(use_cookies=False)
    assert get(client, "/", host="evil.example", **cookie).status_code == 421
    assert get(client, "/", Origin="https://evil.example", **cookie).status_code == 403
    assert get(client, "/", Origin="https://lab.example", **cookie).status_code == 200


def test_a_prefix_is_in_every_address_and_may_be_stripped_by_the_proxy_or_not(path):
    client = build_app([path], access=Access(prefix="/user/me/proxy/8050/")).server.test_client()
    for address in ("/", "/user/me/proxy/8050/", "/user/me/proxy/8050/overview"):
        page = client.get(address, headers={"Host": "localhost"}).get_data(as_text=True)
        assert '"/user/me/proxy/8050/assets/workbench.js' in page
    for address in ("/assets/workbench.js", "/user/me/proxy/8050/assets/workbench.js"):
        with client.get(address, headers={"Host": "localhost"}) as answer:
            assert b"dash_clientside" in answer.data
