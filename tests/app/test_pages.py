"""Compare, Plan, Jobs and exports over HTTP, as the browser calls them."""

from __future__ import annotations

import ast
import io
from dataclasses import replace

import pandas as pd
import pytest

from tests.app.plans import cells_of_verdict, made_plan
from tests.app.test_callbacks import call
from tests.rescanned_run import FIRST, SECOND, scanned
from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.app.exports import find_exports
from workbench.app.pages.compare import settle as settle_compare
from workbench.app.pages.jobs import checkpoint_strips, resume_command, scan_card
from workbench.app.pages.overview import grouped
from workbench.app.state.address import settled
from workbench.app.state.content import Content
from workbench.app.state.live_runs import live_runs
from workbench.app.state.scan_states import scan_state
from workbench.app.state.view import View
from workbench.runs import open_run
from workbench.store import Failure, Store
from workbench.store.length_verdict import LengthVerdict

FEW = {"steps": (0, 64, 256, 1024), "detectors": ("induction", "sink")}
HERE = {"Host": "127.0.0.1"}


JUDGED = replace(made_plan(), verdict=LengthVerdict(0.05, 64, cells_of_verdict()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("full", "hybrid"):
        write_run(folder / name, replace(DEMO[name], **FEW))
    JUDGED.save(folder / "plan-a.json")
    made_plan().save(folder / "plan-b.json")
    return folder


@pytest.fixture(scope="module")
def app(folder):
    return build_app([folder])


def view_on(page, folder, **more):
    runs = live_runs([folder])
    content = Content(runs)
    view = settled(View(page=page).having(more), runs)
    return (settle_compare(view, content) if page == "compare" else view).as_json()


def test_other_models_are_compared_by_rank_and_checkpoints_of_one_by_name(app, folder):
    drawn = call(app, "against.figure", ["view.data"], view=view_on("compare", folder))
    assert "not by name" in drawn["compare-how"]["children"]
    assert drawn["moved-title"]["children"] == "By rank: the largest differences"
    same = view_on("compare", folder, a="full", b="full")
    assert dict(same["more"])["at_a"] != dict(same["more"])["at_b"]
    drawn = call(app, "against.figure", ["view.data"], view=same)
    assert "one lineage" in drawn["compare-how"]["children"]
    assert drawn["moved-title"]["children"] == "What moved most"


def test_a_matrix_of_each_model_or_one_across_a_lineage(app, folder):
    two = call(app, "matrices.figure", ["view.data"], view=view_on("compare", folder))
    assert len(two["matrices"]["figure"]["data"]) == 4
    one = call(app, "matrices.figure", ["view.data"], view=view_on("compare", folder, a="full", b="full"))
    assert len(one["matrices"]["figure"]["data"]) == 2


def test_pairs_are_drawn_and_listed_with_the_largest_change_first(app, folder):
    answer = call(app, "against.figure", ["view.data"], view=view_on("compare", folder, a="full", b="full"))
    rows = answer["moved"]["children"]["props"]["children"][1]["props"]["children"]
    changes = [abs(float(row["props"]["children"][4]["props"]["children"])) for row in rows]
    assert changes == sorted(changes, reverse=True)
    assert len(rows) == 12
    assert answer["against"]["figure"]["data"][1]["customdata"]


def test_classes_over_training_are_those_of_all_chosen_runs(app, folder):
    answer = call(app, "classes.figure", ["view.data"], view=view_on("compare", folder))
    assert {trace["name"] for trace in answer["classes"]["figure"]["data"]} == {"full", "hybrid"}
    assert "lock-in" in answer


def test_the_plan_page_shows_the_mask_of_the_address(app, folder):
    view = {**view_on("plan", folder), "more": [["keep", "n5"], ["plan", "plan-a"]]}
    answer = call(app, "mask.figure", ["view.data"], view=view)
    assert len(answer["plan-kept"]["data"]["keep"]) == 5
    assert answer["budget"] == {"max": 8, "value": 5}
    assert len(answer["mask"]["figure"]["layout"]["shapes"]) == 5


def test_without_a_plan_the_page_says_how_to_make_one(tmp_path):
    write_run(tmp_path / "run", replace(DEMO["full"], **FEW))
    answer = call(build_app([tmp_path / "run"]), "mask.figure", ["view.data"], view=view_on("plan", tmp_path / "run"))
    assert "workbench plan MODEL" in answer["mask"]["figure"]["layout"]["annotations"][0]["text"]


def test_jobs_show_state_reasons_and_the_command_that_resumes(tmp_path):
    path = write_run(tmp_path / "run", replace(DEMO["full"], **FEW), upto=2)
    Store.open(path).fail(Failure("step256", None, "bad_checkpoint", "model.safetensors: header is torn", "trace here"))
    app = build_app([path])
    answer = call(app, "scans.children", ["view.data"], view=view_on("jobs", path))
    assert "header is torn" in str(answer["failed"]["children"])
    assert "trace here" in str(answer["failed"]["children"])
    assert "workbench scan" in str(answer["scans"]["children"])
    again = call(
        app, "scans.children", ["tick.n_intervals"], view=view_on("jobs", path), failed=answer["failed"]["title"]
    )
    assert "failed" not in again
    run = live_runs([path])["run"]
    written = run.last_written()
    assert scan_state(run, written + 1).in_words == "writing"
    assert scan_state(run, written + 1000).in_words.startswith("quiet")


def test_jobs_show_what_the_scan_said_and_which_checkpoints_are_gone(tmp_path):
    path = write_run(tmp_path / "run", replace(DEMO["full"], **FEW))
    store = Store.open(path)
    store.write_plan({**store.plan(), "remarks": ["the tokenizer of step64 is used for all"]})
    store.write_checkpoints([record for record in store.checkpoints() if record["name"] != "step64"])
    (run,) = live_runs([path]).values()
    assert "the tokenizer of step64 is used for all" in str(scan_card(scan_state(run, 0.0)))
    labels = str(checkpoint_strips([run]))
    assert labels.count("no longer on disk") == 2  # as title and label of one box
    assert run.checkpoints()["ckpt"].tolist() == ["step0", "step64", "step256", "step1024"]


def test_the_command_names_what_the_job_was_given(tmp_path):
    job = {"checkpoints": "/data/my series", "detectors": ["sink"], "probes": ["repeats:n=64"], "rows": 128, "seed": 0}
    Store.create(tmp_path / "run", job=job, versions={})
    command = resume_command(live_runs([tmp_path / "run"])["run"])
    assert command == (
        f"workbench scan '/data/my series' --out {tmp_path / 'run'} --detector sink --probe repeats:n=64 --rows 128"
    )


def test_the_command_resumes_the_last_scan_and_the_page_says_what_is_not_shown(tmp_path):
    store = scanned(tmp_path / "run", (FIRST, 0.0), (SECOND["rows"], 0.01))
    store.write_job('checkpoints = "/data/series"\nprobes = ["repeats:n=64"]\nrows = 8\nseed = 0\n')
    run = live_runs([store.path])["run"]
    assert resume_command(run).endswith("--probe repeats:n=64 --rows 8")
    answer = call(build_app([store.path]), "scans.children", ["view.data"], view=view_on("jobs", store.path))
    assert "not shown: rows all" in str(answer["scans"]["children"])


def test_the_command_sets_whatever_is_not_a_jobs_default(tmp_path):
    job = {"checkpoints": "/data/series", "made_in_python": [], "engine": "local", "workers": 2, "far_sink": 4}
    job |= {"seed": 3, "allow_pickle": True, "verify": False, "maps": False, "keep": "qk"}
    Store.create(tmp_path / "run", job=job, versions={})
    command = resume_command(live_runs([tmp_path / "run"])["run"])
    assert command == (
        f"workbench scan /data/series --out {tmp_path / 'run'} --engine local --workers 2 --set far_sink=4 --seed 3 "
        "--allow-pickle --no-maps --keep qk"
    )


def test_a_scan_with_probes_made_in_python_goes_on_in_python(tmp_path):
    job = {"checkpoints": "/data/series", "detectors": ["sink"], "probes": ["repeats:n=64"], "rows": 128, "seed": 0}
    job["made_in_python"] = ["mine:00ff", "other:11ee"]
    Store.create(tmp_path / "run", job=job, versions={})
    comment, call = resume_command(live_runs([tmp_path / "run"])["run"]).split(", then ")
    assert comment == "# no command can name the probes mine:00ff, other:11ee: make them again in Python"
    assert call == (
        f"wb.scan('/data/series', {str(tmp_path / 'run')!r}, detectors=['sink'], rows=128, "
        "probes=['repeats:n=64', *made_again])"
    )
    ast.parse(call)


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("name", sorted(name for name in find_exports() if name != "head" and "." not in name))
def test_every_table_is_exported(app, name, form):
    address = f"/export/{name}.{form}?page=compare&detector=induction&a=full&b=hybrid"
    answer = app.server.test_client().get(address, headers=HERE)
    assert answer.status_code == 200, answer.data
    read = pd.read_csv if form == "csv" else pd.read_parquet
    assert name in {"failures", "timings"} or len(read(io.BytesIO(answer.data)))


def test_exported_scores_are_those_of_the_store(app, folder):
    client = app.server.test_client()
    answer = client.get("/export/scores.parquet?page=overview&run=full&detector=sink&probe=text", headers=HERE)
    table = pd.read_parquet(io.BytesIO(answer.data)).drop(columns="run")
    stored = open_run(folder / "full").scores(detector="sink").drop(columns="run")
    pd.testing.assert_frame_equal(table, stored, check_dtype=False)


def test_a_head_is_exported_at_its_checkpoint(app, folder):
    client = app.server.test_client()
    answer = client.get("/export/head.csv?page=head&of=full&head=L0H1&step=64&detector=sink", headers=HERE)
    table = pd.read_csv(io.BytesIO(answer.data)).set_index("detector")
    (stored,) = open_run(folder / "full").scores(detector="sink", step=64, layer=0, head=1)["score"]
    assert table["score"]["sink"] == pytest.approx(stored)


@pytest.mark.parametrize("path", ["/export/typo.csv", "/export/scores.exe"])
def test_nothing_else_is_exported(app, path):
    assert app.server.test_client().get(path, headers=HERE).status_code == 404


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("run=typo", "there is no run 'typo' here; there is: full, hybrid"),
        ("run=full&run=typo", "there is no run 'typo' here"),
        ("detector=typo", "there is no detector 'typo' here; there is: "),
        ("detector=sink&detector=induction", "detector is given 2 times"),
        ("detectr=sink", "there is no parameter 'detectr'; expected page, run, detector"),
        ("detector=sink&probe=typo", "there is no probe 'typo' here; there is: "),
        ("page=typo", "there is no page 'typo' here; there is: overview, head"),
        ("page=head&of=typo", "there is no of 'typo' here; there is: full, hybrid"),
        ("run=full&of=hybrid", "there is no of 'hybrid' here; there is: full"),
        ("head=L9H9", "there is no head L9H9 in full; there is: L0H0"),
        ("head=first", "head 'first' is not of the form"),
        ("step=63", "there is no step '63' here; there is: 0, "),
        ("step=last", "there is no step 'last' here"),
        ("x=epochs", "there is no x 'epochs' here; there is: tokens, step"),
        ("plan=typo", "there is no plan 'typo' here; there is: plan-a"),
        ("plan=plan-a&keep=n99", "keep='n99' names heads that plan plan-a does not rank"),
        ("plan=plan-a&keep=L0KV0.L99KV0", "does not rank"),
        ("page=compare&a=full&b=typo", "b='typo' cannot be compared here; the nearest is 'hybrid'"),
        ("page=compare&a=full&b=hybrid&at_a=step63", "at_a='step63' cannot be compared here"),
    ],
)
@pytest.mark.parametrize("name", ["scores.csv", "plan.json"])
def test_an_export_of_what_is_not_there_is_refused_and_gives_no_other_rows(app, query, reason, name):
    answer = app.server.test_client().get(f"/export/{name}?{query}", headers=HERE)
    assert (answer.status_code, answer.mimetype) == (404, "text/plain")
    assert reason in answer.text


@pytest.mark.parametrize(
    "query",
    [
        "",
        "run=&detector=",
        "v=abc&step=64",
        "page=head&of=hybrid&head=l0h1&x=step",
        "plan=plan-a&keep=n5",
        "keep=L0KV0",
    ],
)
def test_an_export_of_what_is_there_is_answered(app, query):
    assert app.server.test_client().get(f"/export/scores.csv?{query}", headers=HERE).status_code == 200


def test_metrics_of_hops_and_depths_are_one_group_in_order():
    names = ["loss_nats on text", "recall_hops_10 on hops", "recall_hops_2 on hops", "recall on hops"]
    assert [(group["group"], [item["value"] for item in group["items"]]) for group in grouped(names)] == [
        ("loss nats", ["loss_nats on text"]),
        ("recall by hops · hops", ["recall_hops_2 on hops", "recall_hops_10 on hops"]),
        ("recall", ["recall on hops"]),
    ]


def test_every_table_of_one_model_is_exported_or_refused_with_a_sentence(tmp_path):
    alone = build_app([write_run(tmp_path / "alone", replace(DEMO["full"], steps=(None,)))]).server.test_client()
    answers = {
        name: alone.get(f"/export/{name}.csv?page=head&detector=induction", headers=HERE)
        for name in find_exports()
        if "." not in name
    }
    refused = {name: answer.get_data(as_text=True) for name, answer in answers.items() if answer.status_code != 200}
    assert {"scores", "emergence", "metrics", "head", "moved"}.isdisjoint(refused)
    assert refused.pop("lock_in") == "lock-in compares at least two checkpoints; there are scores of 1\n"
    assert all("make one with" in sentence for sentence in refused.values()), refused  # there is no plan


def test_the_plan_page_says_what_the_plan_loses_with_length_and_not_of_another_mask(app, folder):
    def shown(*more):
        view = {**view_on("plan", folder), "more": [list(pair) for pair in more]}
        return call(app, "verdict.figure", ["view.data"], view=view)

    answer = shown(("plan", "plan-a"))
    assert JUDGED.verdict.sentence in str(answer["verdict-sentence"]["children"])
    assert answer["verdict"]["figure"]["layout"]["annotations"][0]["text"] == "needles"
    for more, words in (
        ([("keep", "n5"), ("plan", "plan-a")], "the mask has others"),
        ([("plan", "plan-b")], "workbench verdict MODEL --plan"),
    ):
        answer = shown(*more)
        assert answer["verdict-sentence"]["children"] == ""
        assert words in answer["verdict"]["figure"]["layout"]["annotations"][0]["text"]


def test_one_model_has_sorted_heads_and_numbers_in_the_place_of_training(tmp_path):
    alone = replace(DEMO["full"], steps=(None,), detectors=("induction",))
    write_run(tmp_path / "alone", alone)
    write_run(tmp_path / "full", replace(DEMO["full"], **FEW))
    app = build_app([tmp_path])

    def overview(*runs):
        return {**view_on("overview", tmp_path), "runs": list(runs)}

    answer = call(app, "answer.children", ["view.data"], view=overview("alone"))
    shown = {name: answer[f"overview-{name}"]["className"] for name in ("training", "one-model", "distribution")}
    assert shown == {"training": "absent", "one-model": "stack", "distribution": "absent"}
    assert "copy accuracy" in str(answer["numbers"])
    assert call(app, "emergence.figure", ["view.data"], view=overview("alone")) == {}
    assert call(app, "ranked.figure", ["view.data"], view=overview("alone"))["ranked"]["figure"]["data"]
    both = call(app, "answer.children", ["view.data"], view=overview("alone", "full"))
    assert {both[f"overview-{name}"]["className"] for name in ("training", "one-model")} == {"stack"}
    names = {
        t["name"]
        for t in call(app, "ranked.figure", ["view.data"], view=overview("alone", "full"))["ranked"]["figure"]["data"]
    }
    assert names == {"alone"}
    assert call(app, "emergence.figure", ["view.data"], view=overview("alone", "full"))["emergence"]["figure"]["data"]
    head = {**view_on("head", tmp_path), "runs": ["alone"], "run": "alone", "head": "L0H0"}
    answer = call(app, "head-title.children", ["view.data"], view=head)
    assert "one-checkpoint" in answer["head-lines"]["className"]
    assert "history" not in answer
    assert "onset" not in str(call(app, "place.figure", ["view.data"], view=head)["head-scores"])


def test_a_model_that_was_scored_on_another_probe_says_so_and_does_not_ask_for_a_scan(tmp_path):
    write_run(tmp_path / "alone", replace(DEMO["full"], steps=(None,), detectors=("induction",)))
    view = {**view_on("overview", tmp_path), "probe": "text"}
    drawn = call(build_app([tmp_path]), "ranked.figure", ["view.data"], view=view)["ranked"]["figure"]
    assert drawn["layout"]["annotations"][0]["text"] == "<b>alone</b>: scored on repeats, not on text"


def test_runs_that_share_their_untrained_weights_alone_are_no_lineage(tmp_path):
    write_run(tmp_path / "a" / "one", replace(DEMO["full"], steps=(0, 64), detectors=("induction",)))
    write_run(tmp_path / "b" / "one", replace(DEMO["full"], steps=(0, 512), detectors=("induction",)))
    write_run(tmp_path / "c" / "one", replace(DEMO["full"], steps=(64, 1024), detectors=("induction",)))
    app = build_app([tmp_path / name for name in "abc"])
    runs = live_runs([tmp_path / name for name in "abc"])

    def compared(a, b):
        view = settle_compare(settled(View(page="compare").having({"a": a, "b": b}), runs), Content(runs)).as_json()
        return call(app, "against.figure", ["view.data"], view=view)

    start = compared("a/one", "b/one")
    assert "their untrained weights alone" in start["compare-how"]["children"]
    assert "beyond noise" not in str(start["moved"])
    unasked = settle_compare(settled(View(page="compare"), runs), Content(runs))
    assert (unasked.get("a"), unasked.get("b")) == ("a/one", "c/one")  # a run and its branch, before two others
    branch = compared("a/one", "c/one")
    assert "one lineage" in branch["compare-how"]["children"]
    assert "beyond noise" in str(branch["moved"])


def test_rankings_of_8_and_270_heads_are_compared_by_share(tmp_path):
    for name, shape in (("few", (2, 4, 2)), ("many", (30, 9, 3))):
        sizes = dict(zip(("n_layers", "n_heads", "n_kv_heads"), shape, strict=True))
        write_run(tmp_path / name, replace(DEMO["full"], steps=(1024,), detectors=("induction",), **sizes))
    answer = call(build_app([tmp_path]), "against.figure", ["view.data"], view=view_on("compare", tmp_path))
    assert "A has 8 heads, B 270" in answer["compare-how"]["children"]
    assert "share of the ranking" in answer["moved-title"]["children"]
    assert len(answer["moved"]["children"]["props"]["children"][1]["props"]["children"]) == 8


def test_every_onset_of_the_app_is_the_same_number_in_the_same_words(app, folder):
    run = live_runs([folder])["full"]
    first = run.onsets("induction", probe="repeats").sort_values("onset_tokens").iloc[0]
    planes = call(app, "planes.data", ["view.data"], view=view_on("overview", folder))["planes"]["data"]
    words = planes["runs"]["full"]["first_onset"]
    classes = call(app, "classes.figure", ["view.data"], view=view_on("compare", folder))
    assert words in str(classes["class-table"])
    head = f"L{first['layer']}H{first['head']}"
    view = {**view_on("head", folder), "run": "full", "head": head}
    assert words in str(call(app, "place.figure", ["view.data"], view=view)["head-scores"])
    strips = call(app, "strips.figure", ["view.data"], view={**view_on("overview", folder), "runs": ["full"]})
    ticks = next(trace for trace in strips["strips"]["figure"]["data"] if trace.get("mode") == "markers")
    assert f"<b>{head}</b> onset<br>{words}" in ticks["text"]
