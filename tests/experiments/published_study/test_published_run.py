"""A study of a model whose heads are known: what is back is what each head sees, and a rerun makes the same bytes."""

import json
import shutil

import numpy as np
import pytest
import torch

from tests.planning.far_pairs import FAR, NEAR, far_pairs, model_of_two_reaches, registered_pairs
from workbench.experiments.published_study.published_report import write_published_report
from workbench.experiments.published_study.published_results import published_results
from workbench.experiments.published_study.published_run import prepare_study, run_published
from workbench.experiments.published_study.published_settings import PublishedStudy
from workbench.experiments.published_study.study_work import ready
from workbench.heads import WorkbenchError
from workbench.store.plan_file import Plan

STUDY = PublishedStudy(
    "two reaches",
    "",
    (4,),
    sink=0,
    seeds=2,
    rankings=("window_gates", "first_order", "far_mass"),
    budgets=(0.25, 0.5),
    main=0.25,
    chance=(0.25,),
    n_ranked=4,
    nodes=4,
    lengths=(40, 96),
    tasks=("far_pairs",),
    linear=False,
)


@pytest.fixture(scope="module", autouse=True)
def pairs():
    with registered_pairs():
        yield


@pytest.fixture(scope="module")
def m():
    return model_of_two_reaches()


@pytest.fixture(scope="module")
def prepared(m, tmp_path_factory):
    study = prepare_study(STUDY, tmp_path_factory.mktemp("study") / "out", m=m)
    assert run_published(study) == 0
    return study


@pytest.fixture(scope="module")
def results(prepared):
    return published_results(prepared.call, prepared.m)


def back(results, arm, length):
    cells = results.cells
    (row,) = cells[(cells.arm == arm) & (cells.length == length)].to_dict("records")
    return row["recovered"]


def contents(out):
    own = ("calls.json", "times.jsonl", "lock")  # what a call took, and who ran it
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name not in own}


def test_a_head_brings_back_what_stands_within_its_reach_and_nothing_beyond(results):
    assert back(results, "all", 40) == back(results, "all", 96) == 1
    assert back(results, "none", 40) == back(results, "none", 96) == 0
    assert back(results, f"only {FAR}", 96) == pytest.approx(1, abs=0.01)
    assert back(results, f"only {NEAR}", 40) == pytest.approx(1, abs=0.01)
    assert back(results, f"only {NEAR}", 96) < 0.5
    assert back(results, f"all but {FAR}", 96) < 0.5


def test_as_many_selected_keys_as_the_window_holds_serve_heads_that_look_at_one(results):
    """The oracle selects the one key that each head looks at, wherever it stands."""
    assert back(results, "none sparse oracle", 40) == pytest.approx(1, abs=0.01)
    (cheap,) = results.cells[(results.cells.arm == "none sparse mean") & (results.cells.length == 40)].to_dict(
        "records"
    )
    assert cheap["n_kept"] == 0
    answers = {claim.name: claim.answer for claim in results.claims()}
    assert "4 blocks of 1 keys" in answers["sparse"]
    assert answers["wider"] == "It cannot be said: no layer has a sliding window of its own."


def test_an_arm_is_what_the_model_answers_with_the_others_windowed(m, prepared, results):
    probe = far_pairs(m, length=96, n_sequences=4, seed=30_000)
    path = prepared.call.files.answers(4, 0, 96, next(
        a.arm.key for a in results.answers.every if a.arm.name == f"only {NEAR}" and a.length == 96
    ))  # fmt: skip
    written = json.loads(path.read_text())["tasks"]["far_pairs"]["nats"]
    others = [head for head in results.heads[4] if head != NEAR]
    with m.restrict(others, window=4), torch.no_grad():
        logits = m.model(input_ids=probe.tokens).logits.double().log_softmax(-1)
    sequence, row = probe.answer_rows.unbind(-1)
    nats = -logits[sequence, row, probe.tokens[sequence, row + 1]]
    # The study takes half of the texts that it makes, evenly spaced.
    by_text = nats.reshape(4, 2).numpy()
    assert any(np.allclose(np.array(written).reshape(2, 2), by_text[list(two)], atol=1e-4) for two in ((0, 3), (0, 2), (1, 3), (0, 1)))  # fmt: skip # noqa: E501


def test_an_interrupted_study_ends_in_the_same_bytes(m, prepared, tmp_path):
    write_published_report(published_results(prepared.call, m), prepared.call.out)
    out = tmp_path / "again"
    shutil.copytree(prepared.call.out, out)
    for path in [*out.glob("parts/w4/seed1/**/*.json"), *out.glob("parts/w4/seed0/n40/keep*.json")]:
        path.unlink()
    again = prepare_study(STUDY, out, m=m)
    left = run_published(again, minutes=1e-9)
    assert left > 0  # the time is up after the first piece
    assert run_published(again) == 0
    write_published_report(published_results(again.call, m), out)
    assert contents(out) == contents(prepared.call.out)


def test_a_finished_study_does_nothing_and_costs_nothing(prepared):
    before = {path: path.stat().st_mtime_ns for path in prepared.call.out.glob("parts/**/*.json")}
    assert run_published(prepared) == 0
    assert {path: path.stat().st_mtime_ns for path in prepared.call.out.glob("parts/**/*.json")} == before
    assert prepared.cost().sentence(2) == "nothing is left to do"


def test_a_folder_of_another_study_is_refused(m, prepared):
    from dataclasses import replace

    with pytest.raises(WorkbenchError, match="sink 0, asked for 1"):
        prepare_study(replace(STUDY, sink=1), prepared.call.out, m=m)
    with pytest.raises(WorkbenchError, match=r"windows \[4\], asked for \[6\]"):
        prepare_study(replace(STUDY, windows=(6, 4)), prepared.call.out, m=m)


def test_a_window_may_be_added_to_a_study_and_leaves_the_pieces_of_the_first(m, prepared, tmp_path):
    from dataclasses import replace

    out = tmp_path / "more"
    shutil.copytree(prepared.call.out, out)
    more = prepare_study(replace(STUDY, windows=(4, 6)), out, m=m)
    assert "w4" not in {path.parent.parent.name for path in _missing(more)}
    assert any("w6" in path.parts for path in _missing(more))


def _missing(prepared):
    return [piece.path for piece in ready(prepared.call, prepared.m) if not piece.path.exists()]


def test_the_report_answers_every_question_and_says_what_it_cannot(results):
    answers = {claim.name: claim.answer for claim in results.claims()}
    assert "far_pairs" in answers["damage_grows"]
    assert answers["training"].startswith("It cannot be said: nothing was trained")
    assert answers["early"].startswith("It cannot be said")
    assert f"only {FAR}" in answers["single_heads"]


def test_the_plan_of_a_study_opens_and_judges_its_own_heads(m, prepared, results):
    write_published_report(results, prepared.call.out)
    plan = Plan.load(prepared.call.out / "plan.json")
    assert len(plan.keep) == 1
    assert {cell.arm for cell in plan.verdict.cells} == {"full", "planned", "windowed"}
    with m.apply(plan):
        assert m.answers(far_pairs(m, length=40, n_sequences=2, seed=3)).is_right.float().mean() == 1


def test_training_without_text_is_refused_before_anything_is_written(m, tmp_path):
    from dataclasses import replace

    from workbench.experiments.published_study.published_settings import Pretraining

    with pytest.raises(WorkbenchError, match="training takes text"):
        prepare_study(replace(STUDY, training=Pretraining((2,))), tmp_path / "out", m=m)
    assert not (tmp_path / "out").exists()
