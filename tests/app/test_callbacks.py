"""The callbacks over HTTP, as the browser calls them: only changed outputs are answered."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.rescanned_run import FIRST, SECOND, commit, request, scanned
from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.app.head_tables import facts_of, head_scores
from workbench.app.state.live_runs import live_runs
from workbench.app.state.view import View
from workbench.heads import Head, WorkbenchError

FEW = replace(DEMO["hybrid"], steps=(0, 64, 1024), detectors=("induction", "retrieval", "entropy", "learned_sink"))
STEP_64 = {"place": {"step": "64"}}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "hybrid", FEW)


@pytest.fixture(scope="module")
def app(path):
    return build_app([path])


USUAL = (("default_left", "copy_accuracy on copy_needle"), ("default_right", "loss_nats on text"))


def view(**changes):
    return replace(View("overview", ("hybrid",), "induction", "repeats", "hybrid", "", USUAL), **changes).as_json()


def call(app, output, changed, **values):
    """Call the callback with this output as the browser does, and return its outputs."""
    name, callback = next((name, callback) for name, callback in app.callback_map.items() if output in name)

    def filled(arguments):
        return [{**argument, "value": values.get(argument["id"].replace("-", "_"))} for argument in arguments]

    def parsed(text):
        component, _, key = text.rpartition(".")
        return {"id": json.loads(component) if component.startswith("{") else component, "property": key}

    outputs = [parsed(text) for text in name.strip(".").split("...")]
    answer = app.server.test_client().post(
        "/_dash-update-component",
        headers={"Host": "127.0.0.1"},
        json={
            "output": name,
            "outputs": outputs if name.startswith("..") else outputs[0],
            "inputs": filled(callback["inputs"]),
            "state": filled(callback["state"]),
            "changedPropIds": changed,
        },
    )
    return json.loads(answer.data)["response"] if answer.status_code == 200 else {}


def test_an_address_sets_the_controls_and_is_completed(app):
    location = {"pathname": "/", "search": "?step=64", "visit": 3}
    answer = call(app, "navigate.data", ["location.data"], location=location)
    assert answer["view"]["data"] == {**view(), "runs": ["hybrid"], "more": [list(pair) for pair in USUAL]}
    assert answer["navigate"]["data"] == {
        "address": "overview?run=hybrid&detector=induction&probe=repeats",
        "replace": True,
        "keepsPlace": True,
        "visit": 3,
    }
    assert answer["address-step"]["data"]["place"] == {"step": "64"}
    assert answer["detector"] == {"data": ["entropy", "induction", "learned_sink", "retrieval"], "value": "induction"}


def test_another_detector_takes_its_probe_along_and_is_an_entry_of_the_history(app):
    answer = call(app, "navigate.data", ["detector.value"], detector="retrieval", view=view())
    assert answer["view"]["data"]["probe"] == "copy_needle"
    assert answer["navigate"]["data"]["replace"] is False
    assert "address-step" not in answer


def test_a_control_that_repeats_its_value_changes_nothing(app):
    assert call(app, "navigate.data", ["detector.value"], detector="induction", view=view()) == {}


@pytest.mark.parametrize("figure", ["emergence.figure", "strips.figure", "grid.figure"])
def test_the_overview_draws_while_it_is_shown_and_only_then(app, figure):
    graph = figure.split(".")[0]
    answer = call(app, figure, ["view.data"], view=view())
    assert answer[graph]["figure"]["data"]
    meta = answer[graph]["figure"]["layout"]["meta"]
    assert (meta["detector"], meta["probe"]) == ("induction", "repeats")
    assert call(app, figure, ["view.data"], view=view(page="head", head="L0H0")) == {}


def test_planes_are_sent_once_for_a_view(app):
    first = call(app, "planes.data", ["view.data", "address-step.data"], view=view(), address_step=STEP_64)
    assert first["checkpoint"]["max"] == 2
    assert first["checkpoint"]["value"] == 1
    assert [mark["label"] for mark in first["checkpoint"]["marks"]] == ["0", "524K", "8.39M"]
    request = first["planes-request"]["data"]
    head = {"view": view(page="head"), "address_step": STEP_64, "planes_request": request}
    assert call(app, "planes.data", ["view.data"], **head) == {}
    entropy = {
        "view": view(detector="entropy", probe="text"),
        "planes_request": request,
        "current_step": {"place": {"step": "64"}, "names": {"hybrid": "step64"}},
    }
    on_entropy = call(app, "planes.data", ["view.data"], **entropy)
    assert on_entropy["planes"]["data"]["unit"] == "nats"
    assert on_entropy["checkpoint"]["value"] == 1


def test_metrics_are_offered_and_drawn(app):
    left, right = '{"name":"left","type":"choice"}', '{"name":"right","type":"choice"}'
    offered = call(app, f"{left}.data", ["view.data"], view=view())
    assert offered[left]["value"] == "copy_accuracy on copy_needle"
    assert offered[right]["value"] == "loss_nats on text"
    drawn = call(app, "figure-right.figure", ["view.data"], view=view())
    assert drawn["figure-right"]["figure"]["data"][0]["name"] == "hybrid"


def test_the_metrics_of_both_cards_are_in_the_address_where_they_are_not_the_usual_ones(app):
    search = "?left=loss_nats+on+text&right=loss_nats+on+text"
    answer = call(app, "navigate.data", ["location.data"], location={"pathname": "/overview", "search": search})
    assert answer["navigate"]["data"]["address"].endswith("&left=loss_nats+on+text")  # the right one is as always
    offered = call(app, '{"name":"left","type":"choice"}.data', ["view.data"], view=answer["view"]["data"])
    assert [each["value"] for each in offered.values()] == ["loss_nats on text"] * 2
    answer = call(app, "navigate.data", ["location.data"], location={"pathname": "/", "search": "?left=typo"})
    assert "typo" not in answer["navigate"]["data"]["address"]
    assert "there is no left 'typo' here; there is: copy_accuracy on copy_needle" in answer["notice"]["data"]["text"]


def test_the_head_page_shows_history_place_and_numbers(app):
    head = view(page="head", head="L0H1")
    answer = call(app, "head-title.children", ["view.data"], view=head)
    assert answer["head-title"]["children"] == "L0H1"
    badges = [badge["props"]["children"] for badge in answer["head-badges"]["children"]]
    assert badges == ["sliding attention · window 64", "4 heads in layer 0", "reads KV head 0"]
    assert [shape["name"] for shape in answer["head-grid"]["figure"]["layout"]["shapes"]] == ["chosen"]
    answer = call(app, "place.figure", ["run-checkpoints.data"], view=head, run_checkpoints={"hybrid": "step64"})
    assert answer["place"]["figure"]["data"][2]["name"] == "L0H1"
    rows = answer["head-scores"]["children"]["props"]["children"][1]["props"]["children"]
    assert len(rows) == 4


def test_numbers_of_a_head_come_with_ranks_and_onset(path):
    run = live_runs([path])["hybrid"]
    rows = {row["detector"]: row for row in head_scores(run, Head(0, 1), "step1024", probe="repeats")}
    scores = run.scores(detector="induction", step=1024)["score"]
    score = run.scores(detector="induction", step=1024, head=Head(0, 1))["score"].iloc[0]
    assert rows["induction"]["score"] == score
    assert rows["induction"]["rank"] == 1 + (scores > score).sum()
    assert (rows["induction"]["of"], rows["induction"]["of_layer"], rows["learned_sink"]["of"]) == (12, 4, 8)
    assert rows["entropy"]["onset"] == "–"
    assert facts_of(run, run.layers(), Head(2, 3)) == {
        "full attention": "kind of the layer, and its window in tokens",
        "4 heads in layer 2": "query heads of the layer",
        "reads KV head 1": "the key/value head it shares",
    }


def test_a_growing_run_says_which_parts_of_the_page_changed(tmp_path):
    path = write_run(tmp_path / "run", FEW, upto=1)
    app = build_app([path])
    view_json = {**view(), "runs": ["run"], "run": "run"}
    first = call(app, "status.children", ["tick.n_intervals"], view=view_json)
    assert "scan 33 %" in json.dumps(first["status"]["children"])
    assert "scores-changed" not in first
    again = call(
        app, "status.children", ["tick.n_intervals"], view=view_json, fingerprints=first["fingerprints"]["data"]
    )
    assert set(again) == {"status", "fingerprints"}
    write_run(path, FEW, upto=2)
    grown = call(
        app, "status.children", ["tick.n_intervals"], view=view_json, fingerprints=again["fingerprints"]["data"]
    )
    assert {"scores-changed", "metrics-changed", "head-changed"} <= set(grown)
    assert "names-changed" not in grown
    assert len(call(app, "planes.data", ["view.data"], view=view_json)["planes"]["data"]["stops"]) == 2


def test_a_torn_part_is_named_in_the_header(tmp_path):
    path = write_run(tmp_path / "run", FEW, upto=1)
    app = build_app([path])
    (next((path / "scores").iterdir()) / f"{'f' * 32}.parquet").write_bytes(b"half")
    answer = call(app, "status.children", ["tick.n_intervals"], view={**view(), "runs": ["run"]})
    assert "cannot be read: run" in json.dumps(answer["status"]["children"])
    assert "workbench check" in json.dumps(answer["banners"]["children"])


def test_runs_of_the_same_name_get_different_names_and_folders_of_runs_are_opened(tmp_path):
    small = replace(FEW, steps=(0,), detectors=("induction",))
    for name in ("a/run", "b/run", "b/other"):
        write_run(tmp_path / name, small)
    assert set(live_runs([tmp_path / "a", tmp_path / "b"])) == {"a/run", "b/run", "other"}
    assert set(live_runs([tmp_path / "a" / "run", tmp_path / "a" / "run"])) == {"run"}


def test_tables_are_read_once_until_their_parts_change(tmp_path):
    path = write_run(tmp_path / "run", FEW, upto=1)
    (run,) = live_runs([path]).values()
    first = run.scores(detector="induction")
    assert run.scores(detector="induction") is first
    write_run(path, FEW, upto=2)
    run.status()
    assert len(run.scores(detector="induction")) == 2 * len(first)
    with pytest.raises(WorkbenchError):
        run.scores(detector="typo")


def test_the_header_says_that_not_all_scores_are_shown_and_a_new_request_draws_anew(tmp_path):
    store = scanned(tmp_path / "run", (FIRST, 0.0))
    app = build_app([store.path])
    view_json = {**view(), "runs": ["run"], "detector": "induction", "probe": "repeats"}
    first = call(app, "status.children", ["tick.n_intervals"], view=view_json)
    assert "not all scores" not in json.dumps(first["status"]["children"])
    request(store, SECOND["rows"])
    commit(store, SECOND["rows"], bias=0.01)
    second = call(
        app, "status.children", ["tick.n_intervals"], view=view_json, fingerprints=first["fingerprints"]["data"]
    )
    assert "not all scores are shown" in json.dumps(second["status"]["children"])
    assert "scores-changed" in second
    request(store, FIRST)
    third = call(
        app, "status.children", ["tick.n_intervals"], view=view_json, fingerprints=second["fingerprints"]["data"]
    )
    assert "scores-changed" in third


def test_a_models_id_on_the_probe_page_is_answered_with_what_run_would_fetch(app, hub):
    def note(model):
        return call(app, "probe-note", ["probe-model.value"], probe_model=model)["probe-note"]["children"]

    assert note("org/name@step1").startswith("org/name@step1 is not in the Hugging Face cache: Run fetches it from")
    assert note("/etc/passwd").startswith(
        "'/etc/passwd' is no id of a model; write org/name, org/name@revision, or one of"
    )
    assert note("") == ""
    client = app.server.test_client()
    answer = client.post("/probing/start", headers={"Host": "127.0.0.1"}, json={"model": "../x", "text": "1"})
    assert "is no id of a model" in answer.json["error"]
    assert hub.requests == []


def test_my_text_leaves_a_checkpoint_that_is_not_on_this_disk_for_one_that_reads_text(tmp_path):
    folders = {"gone": tmp_path / "elsewhere" / "main", "here": tmp_path / "main"}
    folders["here"].mkdir()
    (folders["here"] / "tokenizer.json").write_text("{}")
    paths = [write_run(tmp_path / name, replace(FEW, steps=(None,))) for name in folders]
    for path in paths:
        series = json.loads((path / "checkpoints.json").read_text())
        (path / "checkpoints.json").write_text(json.dumps([{**series[0], "path": str(folders[path.name])}]))
    app = build_app(paths)

    def offered(*names, chosen=None):
        shown = view(page="probe", runs=names)
        answer = call(app, "probe-checkpoint.data", ["view.data"], view=shown, probe_checkpoint=chosen)
        return {part: answer[part].get("value") for part in ("probe-checkpoint", "probe-standard") if part in answer}

    first = offered("gone")
    assert first == {"probe-checkpoint": "gone · main", "probe-standard": "repeated random tokens"}
    both = {"probe-checkpoint": "here · main", "probe-standard": "my text"}
    assert offered("gone", "here", chosen="gone · main") == both
    assert offered("gone", "here", chosen="here · main")["probe-checkpoint"] is None  # the reader's choice stays


def test_the_history_is_drawn_under_the_chosen_detector_first_and_then_under_all(path):
    app = build_app([path])
    head = view(page="head", head="L0H1")
    first = call(app, "history-rest.data", ["view.data"], view=head)
    assert [trace["name"] for trace in first["history"]["figure"]["data"]] == ["induction"]
    rest = first["history-rest"]["data"]
    name = next(name for name in app.callback_map if "history.figure@" in name)
    other = view(page="head", head="L0H2")
    assert call(app, name, ["history-rest.data"], history_rest=rest, view=other) == {}  # another head by now
    whole = call(app, name, ["history-rest.data"], history_rest=rest, view=head)
    assert {trace["name"] for trace in next(iter(whole.values()))["figure"]["data"]} > {"induction"}
    again = call(app, "history-rest.data", ["view.data"], view=other)
    assert len(again["history"]["figure"]["data"]) > 1
    assert "history-rest" not in again


def test_of_a_large_run_a_heads_onsets_follow_when_all_scores_are_read(path, monkeypatch):
    monkeypatch.setattr("workbench.app.pages.head.MANY", 0)
    app = build_app([path])
    head = view(page="head", head="L0H1")

    def onsets(answer):
        rows = answer["head-scores"]["children"]["props"]["children"][1]["props"]["children"]
        return [row["props"]["children"][-1]["props"]["children"] for row in rows]

    first = call(app, "place.figure", ["view.data"], view=head)
    assert first["place"]["figure"]["data"]
    assert onsets(first) == ["…"] * 4
    rest = call(app, "history-rest.data", ["view.data"], view=head)["history-rest"]["data"]
    name = next(name for name in app.callback_map if "history.figure@" in name)
    read = call(app, name, ["history-rest.data"], history_rest=rest, view=head)["history-read"]["data"]
    name = next(name for name in app.callback_map if "head-scores.children@" in name)
    assert "place.figure" not in name  # which would wait for all scores
    then = call(app, name, ["history-read.data"], history_read=read, view=head)
    run = live_runs([path])["hybrid"]
    assert onsets(then) == [row["onset"] for row in head_scores(run, Head(0, 1), "last", probe="repeats")]
    assert set(onsets(then)) > {"–"}
