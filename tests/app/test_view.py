"""Read views from addresses, and replace what is not there by the nearest view that can be shown."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.synthetic_run import DEMO, write_run
from workbench.app.callbacks import next_view
from workbench.app.ids import DETECTOR, JUMP, LOCATION, PROBE, RUNS
from workbench.app.model_numbers import default_metrics
from workbench.app.pages.overview import unscored
from workbench.app.state.address import address_of, settled, view_of
from workbench.app.state.live_runs import live_runs
from workbench.app.state.view import View, neighbour
from workbench.heads import Head


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    few = {"steps": (0, 64, 1024)}
    write_run(folder / "full", replace(DEMO["full"], **few, detectors=("induction", "sink", "retrieval")))
    write_run(folder / "small", replace(DEMO["hybrid"], **few, detectors=("sink",)))
    return live_runs([folder])


def address(text):
    parts = urlsplit(text)
    return {"pathname": parts.path, "search": f"?{parts.query}" if parts.query else ""}


def test_an_address_says_page_runs_detector_probe_step_and_head():
    view, step = view_of(address("/head?run=a&run=b&detector=sink&probe=text&of=b&head=L1H2&step=64"))
    assert view == View("head", ("a", "b"), "sink", "text", "b", "L1H2")
    assert step == 64


def test_a_served_prefix_is_not_part_of_the_page():
    assert view_of(address("/user/me/proxy/8050/head?run=a"))[0].page == "head"


def test_an_address_without_parameters_shows_all_runs(runs):
    view, step = view_of(address("/"))
    assert step is None
    assert settled(view, runs) == View("overview", ("full", "small"), "induction", "repeats", "full", "")


def test_a_chosen_run_without_such_scores_says_what_it_has(runs):
    view = settled(View(), runs)
    assert unscored(view, runs) == {"small": "no scores of induction"}
    assert unscored(replace(view, detector="sink", probe="elsewhere"), runs)["small"] == "scored on text"
    assert unscored(replace(view, detector="sink", probe="text"), runs) == {}


def test_metrics_start_on_the_probe_that_is_shown_where_there_are_such():
    names = ["copy_accuracy on repeats", "loss_nats on repeats", "loss_nats on text"]
    assert default_metrics(names, "text") == ("copy_accuracy on repeats", "loss_nats on text")
    assert default_metrics(names, "repeats") == ("copy_accuracy on repeats", "loss_nats on repeats")
    assert default_metrics([], "text") == (None, None)


def test_of_probes_the_one_that_most_runs_were_scored_on_is_shown_first():
    class Scored:
        def __init__(self, *probes):
            self.detectors, self.probes = ("induction",), probes

        def probes_of(self, detector):
            return self.probes if detector == "induction" else ()

        def scores(self, **filters):
            raise AssertionError("no page asks for them")

    both, text = Scored("repeats", "text"), Scored("text")
    assert settled(View(), {"a": both, "b": text}).probe == "text"
    assert settled(View(), {"a": both, "b": both}).probe == "repeats"
    assert settled(View(probe="repeats"), {"a": both, "b": text}).probe == "repeats"


names = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=12)


@given(
    page=st.sampled_from(["overview", "head"]),
    runs=st.lists(names, min_size=1, max_size=3, unique=True),
    others=st.tuples(names, names, names, names),
)
def test_a_view_comes_back_from_its_address(page, runs, others):
    view = View(page, tuple(runs), *others)
    read, _ = view_of(address("/" + address_of(view)))
    if page == "overview":
        view = replace(view, run=runs[0], head="")
    assert read == view


@pytest.mark.parametrize(
    ("link", "nearest"),
    [
        ("/overview?run=small", View("overview", ("small",), "sink", "text", "small", "")),
        ("/overview?run=other&run=small", View("overview", ("small",), "sink", "text", "small", "")),
        ("/overview?detector=typo", View("overview", ("full", "small"), "induction", "repeats", "full", "")),
        ("/overview?detector=sink&probe=repeats", View("overview", ("full", "small"), "sink", "text", "full", "")),
        ("/elsewhere", View("overview", ("full", "small"), "induction", "repeats", "full", "")),
        ("/head?of=small&head=L2H3&detector=sink", View("head", ("full", "small"), "sink", "text", "small", "L2H3")),
        ("/head?of=nobody&head=L0H0", View("head", ("full", "small"), "induction", "repeats", "full", "L0H0")),
    ],
)
def test_unknown_names_give_way_to_the_nearest_view(runs, link, nearest):
    assert settled(view_of(address(link))[0], runs) == nearest


@pytest.mark.parametrize("head", ["", "L9H9", "nonsense", "<script>"])
def test_a_head_that_is_not_there_is_the_strongest_one(runs, head):
    view = settled(View("head", (), "induction", "", "full", head), runs)
    best = runs["full"].scores(detector="induction", step="last").nlargest(1, "score").iloc[0]
    assert view.head == str(Head(best["layer"], int(best["head"])))


def test_paths_are_never_read_from_an_address(runs):
    view = settled(view_of(address("/overview?run=../../etc&run=/etc/passwd"))[0], runs)
    assert view.runs == ("full", "small")


@pytest.mark.parametrize(
    ("key", "head"), [("h", "L1H0"), ("l", "L1H2"), ("j", "L2H1"), ("k", "L0H1")], ids=["left", "right", "down", "up"]
)
def test_keys_move_to_the_neighbour(key, head):
    heads = [Head(layer, h) for layer in range(3) for h in range(4)]
    assert neighbour("L1H1", key, heads) == head


def test_keys_stop_at_the_border_and_narrow_layers():
    heads = [Head(0, 0), Head(0, 1), Head(0, 2), Head(3, 0)]
    assert neighbour("L0H0", "h", heads) == "L0H0"
    assert neighbour("L0H2", "l", heads) == "L0H2"
    assert neighbour("L0H2", "j", heads) == "L3H0"
    assert neighbour("L3H0", "j", heads) == "L3H0"


def test_each_change_leads_to_its_view(runs):
    view = settled(View(), runs)
    assert next_view(view, LOCATION, {LOCATION: address("/overview?run=small")}, runs).runs == ("small",)
    assert next_view(view, RUNS, {RUNS: ["small"]}, runs).detector == "sink"
    assert next_view(view, RUNS, {RUNS: []}, runs).runs == ("full", "small")
    assert next_view(view, DETECTOR, {DETECTOR: "retrieval"}, runs).probe == "copy_needle"
    assert next_view(view, PROBE, {PROBE: None}, runs) == view
    clicked = next_view(view, JUMP, {JUMP: {"page": "head", "head": "L1H1", "run": "small"}}, runs)
    assert (clicked.page, clicked.run, clicked.head) == ("head", "small", "L1H1")
    assert next_view(clicked, JUMP, {JUMP: {"key": "l"}}, runs).head == "L1H2"
    assert next_view(view, JUMP, {JUMP: {"key": "l"}}, runs) == view
