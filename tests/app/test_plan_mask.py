"""A plan's mask: written into the address, its cost predicted from the curve, exported as a plan again."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.app.plans import made_plan
from tests.synthetic_run import DEMO, write_run
from workbench.app import build_app
from workbench.app.pages.plan import settle
from workbench.app.state.content import Content
from workbench.app.state.plan_mask import bytes_of, edited, find_plans, mask_of, predictions, text_of
from workbench.app.state.view import View
from workbench.heads import KVHead, WorkbenchError
from workbench.store.plan_file import Plan


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
