"""Which heads need the whole context is told by a plan of that model, else by detectors with their thresholds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.synthetic_run import DEMO, write_run
from workbench.app.answer_card import sentences
from workbench.app.server.serving import open_content
from workbench.heads import Head
from workbench.runs.answers import Answer, answer_of, query_heads
from workbench.runs.plans_of_runs import plan_of_run, run_of_plan
from workbench.store.plan_file import Plan

PUBLISHED = Path(__file__).parents[2] / "examples" / "published"


@pytest.fixture(scope="module")
def published():
    return open_content([PUBLISHED / "smollm2", PUBLISHED / "gemma3-270m"], [])


def words(component):
    children = getattr(component, "children", component)
    if isinstance(children, list | tuple):
        return "".join(map(words, children))
    return str(children or "") if not hasattr(children, "children") else words(children)


def test_a_plan_of_the_model_answers_with_its_heads_and_what_they_bring_back(published):
    answer = answer_of(published.runs["smollm2"], published.plans)
    plan = Plan.load(PUBLISHED / "smollm2" / "window-128.json")
    assert (answer.plan, answer.count) == ("window-128", f"{len(plan.keep)} of 90 key/value heads")
    assert {(head.layer, head.head // 3) for head in answer.heads} == set(plan.keep)
    first = plan.ranking[0].head
    assert answer.heads[:3] == tuple(Head(first.layer, 3 * first.kv_head + i) for i in range(3))
    best = next(p for p in plan.curve if p.method == plan.method and p.n_kept == len(plan.keep))
    assert f"{best.recovered:.2f} [{best.ci_lo:.2f}, {best.ci_hi:.2f}]" in answer.basis
    assert answer.since == ""  # one checkpoint


def test_without_a_plan_detectors_answer_with_their_thresholds_and_say_that_they_only_look(published):
    run = published.runs["gemma3-270m"]
    answer = answer_of(run, published.plans)
    retrieval = run.scores(detector="retrieval_top1", probe="niah_single_2")
    induction = run.scores(detector="induction", probe="repeats")
    passing = [
        *retrieval.loc[(retrieval["ci_lo"] > 0.1) & (retrieval["kind"] == "full")].itertuples(),
        *induction.loc[(induction["ci_lo"] > 0.4) & (induction["kind"] == "full")].itertuples(),
    ]
    assert set(answer.heads) == {Head(row.layer, row.head) for row in passing}
    assert answer.count == f"{len(answer.heads)} of the 12 heads that see the whole context"
    assert "retrieval_top1 > 0.1 on niah_single_2" in answer.basis
    assert "induction > 0.4 on repeats" in answer.basis
    assert any("detectors say where heads look" in remark for remark in answer.remarks)


def test_a_plan_of_another_model_or_other_layers_answers_for_no_run(published):
    gemma, smollm = published.runs["gemma3-270m"], published.runs["smollm2"]
    assert plan_of_run(gemma, published.plans) is None
    name, plan = plan_of_run(smollm, published.plans)
    assert name == "window-128"
    assert len(query_heads(plan)) == 3 * len(plan.keep)
    assert plan_of_run(smollm, {}) is None


def test_a_plan_beside_a_run_has_to_name_its_model(tmp_path, published):
    run = published.runs["smollm2"]
    plan = Plan.load(PUBLISHED / "smollm2" / "window-128.json")
    for model, is_found in (("elsewhere/smollm2", True), ("another", False), ("", False)):
        replace(plan, model=model).save(tmp_path / "plan.json")
        path = tmp_path / "plan.json"
        assert (plan_of_run(run, {"plan": path}) is not None) == is_found
        assert run_of_plan(Plan.load(path), path, published.runs) == ("smollm2" if is_found else "")


def test_over_training_the_answer_says_since_when_and_links_to_the_heads(tmp_path):
    write_run(tmp_path / "full", replace(DEMO["full"], detectors=("induction",)))
    write_run(tmp_path / "sliding", replace(DEMO["sliding"], steps=(0, 64), detectors=("induction",)))
    write_run(tmp_path / "sinks", replace(DEMO["full"], steps=(0, 64), detectors=("sink",)))
    content = open_content([tmp_path], [])
    found = {name: answer_of(run, content.plans) for name, run in content.runs.items()}
    onsets = (
        content.runs["full"]
        .onsets("induction")
        .merge(content.runs["full"].scores(step="last").query("ci_lo > 0.4").loc[:, ["layer", "head"]])
    )
    assert len(onsets) == len(found["full"].heads) > 1
    earliest = onsets.sort_values("onset_tokens").iloc[0]
    assert found["full"].since.startswith("the first since ")
    assert f"{earliest['onset_tokens'] / 1e6:.3g}M tokens, half of them by" in found["full"].since
    assert found["sliding"].basis == "by its layers: none sees the whole context"
    assert "there are no scores of retrieval_top1" in found["sinks"].basis
    text = [words(sentence) for sentence in sentences(found)]
    assert text[0].startswith("full: ")
    assert all(said.startswith(answer.sentence) for said, answer in zip(text, found.values(), strict=False))
    assert str(found["full"].heads[0]) in text[0]
    assert "not known" in text[1]


def test_heads_of_layers_that_select_from_their_whole_past_may_look_far(tmp_path):
    write_run(tmp_path / "sparse", replace(DEMO["full"], steps=(0, 64), kinds=("sparse",), detectors=("induction",)))
    content = open_content([tmp_path], [])
    assert answer_of(content.runs["sparse"], content.plans).count.endswith("heads that see the whole context")


def test_the_heads_that_are_not_named_are_a_click_away_and_what_follows_is_set_apart():
    heads = tuple(Head(2, number) for number in range(10))
    answer = Answer("full", heads, "5 of 8 key/value heads", "by the plan kept", plan="kept", remarks=("seen too",))
    (sentence,) = sentences({"full": answer})
    assert words(sentence).endswith("L2H7 and 2 more query heads · the plan, its costs and its verdict · seen too")
    rest = next(part for part in sentence.children if getattr(part, "href", "") == "head_table")
    assert (getattr(rest, "data-head"), getattr(rest, "data-run")) == ("L2H0", "full")
    (few,) = sentences({"full": Answer("full", heads[:1], "1 of 8 heads", "by induction > 0.4")})
    assert words(few).strip().endswith(". L2H0")


def test_runs_without_an_answer_for_the_same_reason_share_a_sentence():
    unknown = {name: Answer(name, (), "", "there are no scores") for name in ("b", "c")}
    known = Answer("a", (Head(0, 1),), "1 of 8 heads", "by induction > 0.4")
    text = [words(sentence) for sentence in sentences({"b": unknown["b"], "a": known, "c": unknown["c"]})]
    assert [said.strip() for said in text] == [
        "a: 1 of 8 heads look far, by induction > 0.4. L0H1",
        "b, c: not known: there are no scores.",
    ]
    assert words(sentences({"b": unknown["b"]})[0]).startswith("b: not known")
