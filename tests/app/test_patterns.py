"""Patterns: the canvas shows the stored values, tokens stay text, and only known runs are answered."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace

import numpy as np
import pytest

from tests.app.patterns import FAR, HTML, PLANTED, PLANTED_HEAD, N, add_patterns, patterns
from tests.app.test_browser import arrive
from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.store import map_codes

FEW = {"steps": (0, 64, 1024), "detectors": ("induction", "sink")}


@pytest.fixture(scope="module")
def made():
    return patterns()


@pytest.fixture(scope="module")
def run(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("runs")
    add_patterns(write_run(folder / "full", replace(DEMO["full"], **FEW)), made, last=2)
    add_patterns(
        write_run(folder / "linear", replace(DEMO["linear"], **FEW)),
        patterns(signed_layer=0),
        signed_layer=0,
        pieces=False,
    )
    write_run(folder / "none", replace(DEMO["hybrid"], **FEW))
    return folder


@pytest.fixture(scope="module")
def client(run):
    return build_app([run]).server.test_client()


def got(client, route, **query):
    return client.get(f"/patterns/{route}", query_string=query, headers={"Host": "localhost"})


def test_a_tile_is_the_stored_pattern_as_fine_as_it_is_kept(client, made):
    head = {"run": "full", "layer": 1, "head": 2}
    answer = got(client, "tile", **head, q0=70, q1=90, k0=0, k1=20)
    described = json.loads(answer.headers["X-Workbench"])
    assert described["block"] == 1
    assert (described["rows"], described["query"], described["key"]) == (20, 70, 0)
    codes = np.frombuffer(answer.data, np.uint8).reshape(20, 20)
    assert map_codes.decode(codes) == pytest.approx(made[6, 70:90, :20], rel=0.034, abs=1e-7)
    coarse = json.loads(got(client, "tile", **{**head, "head": 1}, q0=0, q1=N, k0=0, k1=N).headers["X-Workbench"])
    assert (coarse["block"], coarse["rows"]) == (2, N // 2)


def test_an_atlas_has_all_heads_of_a_layer(client):
    answer = got(client, "atlas", run="linear", layer=0)
    described = json.loads(answer.headers["X-Workbench"])
    assert described["heads"] == [0, 1, 2, 3]
    assert described["signed"] == [True] * 4
    assert len(answer.data) == 4 * (N // 2) ** 2


def test_an_atlas_is_sent_compressed(client):
    plain = got(client, "atlas", run="full", layer=0)
    headers = {"Host": "localhost", "Accept-Encoding": "gzip"}
    packed = client.get("/patterns/atlas?run=full&layer=0", headers=headers)
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.data) == plain.data


def test_a_head_names_its_strongest_far_link_first(client):
    facts = got(client, "head", run="full", layer=PLANTED_HEAD[0], head=PLANTED_HEAD[1]).get_json()
    link = facts["links"][0]
    assert (link["query"], link["key"]) == PLANTED
    assert link["value"] == pytest.approx(0.95)
    assert all(link["distance"] >= FAR for link in facts["links"])
    assert sum(bar["mass"] for bar in facts["profile"]) + facts["sink"] == pytest.approx(1, abs=1e-5)


def test_the_heads_are_named_with_their_attention_far_back_over_the_rows_that_have_such_tokens(client, made):
    far = got(client, "far", run="full").get_json()
    assert far["from"] == FAR  # a power of two, as distances are stored
    distance = np.arange(N)[:, None] - np.arange(N)
    expected = (made * (distance >= FAR))[:, :, 1:].sum((1, 2)) / (N - 1 - FAR)
    assert [head[:3] for head in far["heads"][:5]] == [[0, h, "full"] for h in range(4)] + [[1, 0, "full"]]
    assert [head[3] for head in far["heads"]] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ({"run": "none", "layer": 0}, "--no-maps"),
        ({"run": "../full", "layer": 0}, "there is no run"),
        ({"run": "/etc/passwd", "layer": 0}, "there is no run"),
        ({"layer": 0}, "there is no run"),
        ({"job": "../../etc", "layer": 0}, "no longer kept"),
        ({"run": "full", "layer": 99}, "no layer 99"),
        ({"run": "full", "layer": "x"}, "does not say which pattern"),
        ({"run": "full"}, "does not say which pattern"),
        ({"run": "full", "ckpt": "step0", "layer": 0}, "maps of step1024"),
    ],
)
def test_a_pattern_that_cannot_be_shown_gives_the_reason(client, query, reason):
    answer = got(client, "atlas", **query)
    assert answer.status_code == 200
    assert reason in answer.get_json()["error"]


def test_patterns_are_for_this_machine_and_its_own_pages_alone(client):
    for headers, status in (
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost", "Origin": "http://evil.example"}, 403),
    ):
        assert client.get("/patterns/atlas?run=full&layer=0", headers=headers).status_code == status
        assert client.post("/probing/start", headers=headers, json={}).status_code == status


@pytest.fixture(scope="module")
def address(served, run):
    with served([run]) as address:
        yield address


def opened(tab, address, head="L1H2", of="full"):
    arrive(tab, f"{address}/head?of={of}&head={head}&detector=induction", "head")
    tab.wait_for_selector("#head-patterns canvas.map")


def point_at(tab, i):
    """Move the pointer onto a token; one that begins a line has its space at the end of the line before."""
    token = tab.locator("#head-patterns .tokens span").nth(i)
    token.evaluate("e => e.scrollIntoView({ block: 'center' })")  # not behind the controls
    box = token.evaluate("e => { const b = [...e.getClientRects()].pop(); return [b.x, b.y, b.width, b.height]; }")
    tab.mouse.move(box[0] + box[2] / 2, box[1] + box[3] / 2)


def placed(tab):
    """Where the pattern's canvas is, once it is in sight."""
    canvas = tab.locator("#head-patterns canvas.map")
    canvas.evaluate("canvas => canvas.scrollIntoView({ block: 'end' })")
    return canvas.bounding_box()


def pixels(tab, *cells):
    """The colours of cells (query, key) of the pattern's canvas."""
    return tab.evaluate(
        """([cells, n]) => {
            const canvas = document.querySelector('#head-patterns canvas.map');
            const { width, height } = canvas;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            return cells.map(([query, key]) => {
                const [x, y] = [Math.floor((key + 0.5) / n * width), Math.floor((query + 0.5) / n * height)];
                return [...data.slice(4 * (y * width + x), 4 * (y * width + x) + 3)];
            });
        }""",
        [cells, N],
    )


@pytest.mark.browser
def test_the_pattern_is_drawn_where_attention_is_high_and_the_link_is_ringed_and_named(tab, address):
    opened(tab, address)
    background, link, beside = pixels(tab, (5, 90), PLANTED, (81, 40))
    assert sum(abs(a - b) for a, b in zip(link, background, strict=True)) > 200
    assert sum(abs(a - b) for a, b in zip(beside, background, strict=True)) < 10
    first = tab.locator("#head-patterns table.links tbody tr").first.inner_text().split()
    assert first == ["0.95", "w81", "@81", "w7", "@7", "74"]
    assert tab.locator("#head-patterns .ring").count() >= 1
    assert "√ scale" in tab.locator("#head-patterns h3", has_text="Pattern").inner_text()
    assert tab.complaints == []


@pytest.mark.browser
def test_tokens_are_text_and_pointing_works_both_ways(tab, address):
    opened(tab, address)
    tokens = tab.locator("#head-patterns .tokens span")
    assert tokens.count() == N
    assert tokens.nth(3).inner_text() == HTML
    assert tab.locator("#head-patterns script").count() == 0
    assert tab.title() == "L1H2 · attention workbench"
    point_at(tab, PLANTED[0])
    colour = "i => document.querySelectorAll('#head-patterns .tokens span')[i].style.background"
    (link,) = pixels(tab, PLANTED)
    assert tab.evaluate(colour, PLANTED[1]) == "rgb({}, {}, {})".format(*link)  # as in the pattern
    assert tab.evaluate(colour, 40) == ""
    box = placed(tab)
    x, y = ((i + 0.5) / N for i in (PLANTED[1], PLANTED[0]))
    tab.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
    caption = tab.locator("#head-patterns .said").inner_text()
    assert "query  w81 @81 → key  w7 @7" in caption.replace("\u00a0", " ") or "w81 @81 → key" in caption
    assert tab.locator("#head-patterns .tokens span.pointed").inner_text().strip() == "w7"
    tab.get_by_role("button", name="to", exact=True).click()
    point_at(tab, PLANTED[1])
    assert tab.evaluate(colour, PLANTED[0]) == "rgb({}, {}, {})".format(*link)
    assert tab.complaints == []


@pytest.mark.browser
def test_a_click_on_the_atlas_opens_the_head_and_a_drag_zooms(tab, address):
    opened(tab, address)
    size = tab.evaluate("document.querySelector('#head-patterns canvas.atlas').clientWidth") / 4
    tab.locator("#head-patterns canvas.atlas").click(position={"x": 3.5 * size, "y": 30})
    tab.wait_for_function("document.querySelector('#head-title').textContent === 'L1H3'")
    tab.wait_for_function(
        "document.querySelector('#head-patterns canvas.map')?.getAttribute('aria-label').endsWith('L1H3')"
    )
    tab.keyboard.press("h")
    tab.wait_for_function(
        "document.querySelector('#head-patterns canvas.map')?.getAttribute('aria-label').endsWith('L1H2')"
    )
    box = placed(tab)
    tab.mouse.move(box["x"] + 5, box["y"] + 0.75 * box["height"])
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.9 * box["height"], steps=4)
    tab.mouse.up()
    tab.wait_for_function("!document.querySelector('#head-patterns .plot + .choices button').disabled")
    assert "single tokens" in tab.locator("#head-patterns h3", has_text="Pattern").inner_text()
    tab.get_by_role("button", name="whole pattern").click()
    tab.wait_for_function("document.querySelector('#head-patterns .plot + .choices button').disabled")
    assert tab.complaints == []


@pytest.mark.browser
def test_signed_layers_diverge_and_a_run_without_maps_says_how_to_make_them(tab, address):
    opened(tab, address, "L0H1", of="linear")
    assert "signed" in tab.locator("#head-patterns h3", has_text="Pattern").inner_text()
    shades = tab.evaluate(
        """() => {
            const canvas = document.querySelector('#head-patterns canvas.map');
            const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
            let [blue, red] = [0, 0];
            for (let i = 0; i < data.length; i += 4) {
                if (data[i + 2] > data[i] + 60) blue += 1;
                if (data[i] > data[i + 2] + 60) red += 1;
            }
            return [blue, red];
        }"""
    )
    assert min(shades) > 50
    arrive(tab, f"{address}/head?of=none&detector=induction", "head")
    tab.wait_for_selector("#head-patterns .empty")
    assert "--no-maps" in tab.inner_text("#head-patterns .empty")
    assert tab.complaints == []
