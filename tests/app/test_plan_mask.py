"""A plan's mask: written into the address, its cost predicted from the curve, exported as a plan again."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import pytest

from tests.app.plans import made_plan
from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.app.pages.plan import (
    FORMS,
    about,
    away,
    facts,
    kv_head_of,
    mask_figure,
    query_heads_of,
    ranking_frame,
    ranking_table,
    settle,
)
from workbench.app.server.serving import open_content
from workbench.app.state.content import Content
from workbench.app.state.plan_mask import bytes_of, edited, mask_of, predictions, text_of
from workbench.app.state.view import View
from workbench.heads import Head, KVHead, WorkbenchError
from workbench.runs.plans_of_runs import find_plans, run_of_plan
from workbench.store.conversions import LinearAttention
from workbench.store.plan_file import HeadCosts, Plan


@pytest.fixture(scope="module")
def plan():
    return made_plan()


@pytest.fixture
def folder(tmp_path, plan):
    write_run(tmp_path / "run", replace(DEMO["full"], steps=(0, 64), detectors=("induction",)))
    plan.save(tmp_path / "run" / "kept.json")
    plan.save(tmp_path / "beside.json")
    (tmp_path / "other.json").write_text('{"version": 1}')
    return tmp_path


def test_plans_are_found_in_and_beside_a_run_and_what_else_is_there_is_left_alone(folder):
    assert set(find_plans([folder / "run"], [])) == {"kept", "beside"}


def test_a_file_that_was_named_must_be_a_plan(folder):
    with pytest.raises(WorkbenchError, match=r"other\.json"):
        find_plans([folder / "run"], [folder / "other.json"])


@pytest.mark.parametrize("n", range(9))
def test_a_budget_is_so_many_of_the_ranking(plan, n):
    keep = mask_of(plan, f"n{n}")
    assert set(keep) == {r.head for r in plan.ranking[:n]}
    assert mask_of(plan, text_of(plan, keep)) == keep


def test_any_mask_comes_back_from_its_text(plan):
    heads = [r.head for r in plan.ranking]
    for keep in ([], heads, [heads[3]], [heads[5], heads[0]], list(plan.keep)):
        assert set(mask_of(plan, text_of(plan, keep))) == set(keep)
    assert text_of(plan, plan.keep) == ""
    assert mask_of(plan, "L9KV9.L0KV1.nonsense") == (KVHead(0, 1),)


def test_on_the_ranking_the_curve_is_read_and_beside_it_scores_are_summed(plan):
    (measured,) = predictions(edited(plan, "n3"))
    points = plan.curves().query("method == @plan.method").set_index("n_kept")
    assert measured.is_measured
    assert measured.nats == pytest.approx((points["nats"][2] + points["nats"][4]) / 2)
    last = plan.ranking[-1].head
    (summed,) = predictions(edited(plan, str(last)))
    assert not summed.is_measured
    assert summed.recovered == pytest.approx(plan.ranking[-1].score / sum(r.score for r in plan.ranking))
    whole = points["nats"][0] + summed.recovered * (points["nats"][8] - points["nats"][0])
    assert summed.nats == pytest.approx(whole)


def test_bytes_are_those_of_the_kept_heads(plan):
    needed, full = bytes_of(edited(plan, "n2"))
    per_token = 2 * 2 * 16
    assert full == 8 * 64 * per_token
    assert needed == (2 * 64 + 6 * (8 + 1)) * per_token
    assert edited(plan, "n2").kv_saved == pytest.approx(1 - needed / full)


@pytest.fixture
def mixed(plan):
    """Two heads have linear attention where they are not kept, the third and the fourth of the ranking."""
    form = LinearAttention("elu", 2.0, 0.5)
    heads = [r.head for r in plan.ranking]
    costs = (
        HeadCosts(*heads[2], 0.5, 0.004, 0.2, "", form),
        HeadCosts(*heads[3], 0.25, 0.002, 0.2, "", form),
        HeadCosts(*heads[4], 0.001, float("nan"), 1.5, "error_above_1", form),
    )
    return replace(plan, conversions=dict.fromkeys(heads[2:4], form), costs=costs, remarks=("little is left",))


def test_an_edited_mask_leaves_every_other_head_its_own_conversion(mixed):
    third = mixed.ranking[2].head
    more = edited(mixed, "n3")
    assert list(more.linear) == [mixed.ranking[3].head]
    assert edited(more, "n2").linear.keys() == mixed.linear.keys()
    needed, full = bytes_of(more)
    assert needed == (3 * 64 + 4 * (8 + 1)) * 64 + 4 * 16 * 17
    assert more.kv_saved == pytest.approx(1 - needed / full)
    assert third in more.keep


def test_the_page_says_who_is_linear_what_either_costs_and_what_is_in_doubt(folder, mixed):
    text = str(ranking_table(mixed).to_plotly_json())
    assert text.count("linear attention") == 2
    assert text.count("window 8") == 4
    for cost in ("0.5000", "0.0040", "0.2500", "error above 1"):
        assert cost in text
    assert "4 windowed, 2 linear" in str(facts(mixed)[0])
    frame = ranking_frame(mixed).set_index(["layer", "kv_head"])
    assert frame.loc[tuple(mixed.ranking[2].head), ["choice", "keeps"]].tolist() == ["linear", False]
    mixed.save(folder / "run" / "kept.json")
    client = build_app([folder / "run"]).server.test_client()
    answer = client.get("/export/plan.json?page=plan&plan=kept&keep=n3", headers={"Host": "localhost"})
    (folder / "exported.json").write_bytes(answer.data)
    exported = Plan.load(folder / "exported.json")
    assert exported.choices == mixed.keeping([r.head for r in mixed.ranking[:3]]).choices
    assert exported.remarks == ("little is left",)
    names = {trace.name for trace in mask_figure(mixed, "light").data}
    assert {"linear attention (2)", "window of 8 tokens (4)"} <= names


def test_a_plan_is_taken_away_in_every_form_that_can_say_it(folder, plan, mixed):
    client = build_app([folder / "run"]).server.test_client()
    query = {"page": "plan", "plan": "kept", "keep": "n3"}
    there = {name: client.get(f"/export/{name}", query_string=query, headers={"Host": "localhost"}) for name in FORMS}
    assert Plan.load(_saved(folder, there["plan.json"].data)).keep == edited(plan, "n3").keep
    names = {answer.headers["Content-Disposition"] for answer in there.values() if answer.status_code == 200}
    assert 'attachment; filename="kept-edited-spec.json"' in names
    own = client.get("/export/plan.json", query_string={**query, "keep": ""}, headers={"Host": "localhost"})
    assert own.headers["Content-Disposition"] == 'attachment; filename="kept-plan.json"'
    with zipfile.ZipFile(io.BytesIO(there["duo-attention.zip"].data)) as duo:
        rows = [line.split("\t") for line in duo.read("full_attention_heads.tsv").decode().splitlines()]
        assert json.loads(duo.read("config.json")) == {"sink_size": 1, "recent_size": 8}
    full = {(layer, h) for layer, row in enumerate(rows) for h, cell in enumerate(row) if float(cell) == 1}
    assert full == {tuple(head) for head in edited(plan, "n3").keep}
    heads = there["spec.json"].get_json()["layers"][1]["kv_heads"]
    assert [head["kind"] for head in heads] == ["window", "full", "window", "full"]
    assert there["layer-types.json"].status_code == 409  # which the page says where the link would be
    assert "keep some heads and not others" in there["layer-types.json"].get_data(as_text=True)
    links = str(away(mixed, View(page="plan")))
    assert "DuoAttention: the plan gives L0KV2 and L1KV3 linear attention" in links or "linear attention, and" in links
    assert links.count("download=") == 2


def _saved(folder, payload):
    (folder / "exported.json").write_bytes(payload)
    return folder / "exported.json"


def test_a_plan_inside_a_run_of_its_model_links_to_the_heads_that_read_each_key_value_head(folder, plan):
    other = replace(plan, layers=tuple(replace(info, n_heads=8) for info in plan.layers), model="run")
    other.save(folder / "run" / "other.json")
    content = open_content([folder / "run"], [])
    assert run_of_plan(plan, content.plans["kept"], content.runs) == "run"
    assert run_of_plan(other, content.plans["other"], content.runs) == ""  # the heads are others
    assert [str(head) for head in query_heads_of(other, KVHead(1, 2))] == ["L1H4", "L1H5"]
    assert kv_head_of(other, Head(1, 5)) == KVHead(1, 2)
    assert kv_head_of(other, Head(1, 8)) is None
    table = str(ranking_table(other, "run").to_plotly_json())
    assert "data-head='L1H4'" in table or "'data-head': 'L1H4'" in table


def test_a_choice_of_another_kind_is_counted_and_written_under_its_own_name(plan, monkeypatch):
    names = {"full": "full"}
    monkeypatch.setattr("workbench.app.pages.plan.name_of", lambda choice: names.get(str(choice), "sparse"))
    assert "6 sparse" in str(facts(plan)[0])
    assert str(ranking_table(plan)).count("sparse") == 6
    assert "no head is converted" in str(facts(plan.keeping([r.head for r in plan.ranking]))[0])


def test_an_unknown_plan_gives_way_to_one_that_is_there_and_the_mask_is_written_shortly(folder, plan):
    content = Content({}, find_plans([folder / "run"], []))
    assert settle(View(page="plan").having({"plan": "/etc/passwd"}), content).get("plan") in content.plans
    first = ".".join(str(r.head) for r in plan.ranking[:3])
    view = View(page="plan").having({"plan": "kept", "keep": first})
    assert settle(view, content).get("keep") == "n3"
    assert settle(View(page="plan"), Content({}, {})) == View(page="plan")


def test_the_edited_plan_is_exported_as_a_plan(folder, plan, tmp_path):
    client = build_app([folder / "run"]).server.test_client()
    answer = client.get("/export/plan.json?page=plan&plan=kept&keep=L0KV0.L1KV3", headers={"Host": "localhost"})
    file = tmp_path / "exported.json"
    file.write_bytes(answer.data)
    loaded = Plan.load(file)
    assert set(loaded.keep) == {KVHead(0, 0), KVHead(1, 3)}
    assert replace(loaded, keep=plan.keep) == plan


def test_what_a_plan_knows_of_its_evidence_is_said_in_words(plan):
    known = {"lost_nats": 0.114, "enough": 25.0, "of_another_method": 2.0}
    labels = about(replace(plan, evidence=known))
    assert "nats lost by the plan: 0.114" in labels
    assert labels["heads for 95 %: 25"].startswith("the fewest of the curve")
    assert labels["of_another_method: 2"] == "evidence of the method"
