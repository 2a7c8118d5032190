"""A study resumes piece by piece, is the same for a seed, and measures what a plain forward pass measures."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.command_process import workbench
from tests.experiments.small import STUDY
from workbench.cli.main import main
from workbench.detectors import score
from workbench.emergence.rank_statistics import spearman
from workbench.experiments import quick_study, read_finished, read_results, run_conversion, write_report
from workbench.experiments.conversion.arms import arms_of, prepare
from workbench.experiments.conversion.head_conversion import forms_from, linear_heads, masked
from workbench.experiments.conversion.results import (
    NO_TRAINING,
    causes,
    damage_by_context,
    kept_role,
    lock_in,
    lost_early,
    recall_by_seed,
    recovered_share,
)
from workbench.experiments.conversion.study_data import probes
from workbench.experiments.conversion.study_folder import claim
from workbench.experiments.conversion.study_report import answers
from workbench.heads import KVHead, StoreNotWritable, WorkbenchError
from workbench.hooks import open_model


def parts(out):
    return {path.relative_to(out): path for path in sorted((out / "parts").rglob("*.json"))}


def measured(path):
    """A part without what it cost."""
    return {k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("cpu_s")}


def experiment(*arguments):
    return workbench("experiment", "conversion", *arguments)


def test_a_rerun_does_what_is_missing_alone_and_measures_the_same(study_folder, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study_folder, out)
    names = list(parts(out))
    assert run_conversion(STUDY, out, seeds=2) == 0
    lost = [names[0], names[-2], names[-1]]
    for name in lost:
        (out / name).unlink()
    kept = {name: (out / name).stat().st_mtime_ns for name in names if name not in lost}
    told = []
    assert run_conversion(STUDY, out, seeds=2, on_progress=told.append) == 3
    assert [(p.done, p.total) for p in told][-1] == (3, 3)
    assert {name: (out / name).stat().st_mtime_ns for name in kept} == kept
    for name in lost:
        assert measured(out / name) == measured(study_folder / name)


def test_a_seed_added_later_gives_the_numbers_it_always_gives(study_folder, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study_folder, out)
    shutil.rmtree(out / "parts" / "seed1")
    shutil.rmtree(out / "models" / "seed1")
    with pytest.raises(WorkbenchError, match="is missing; run the study for 2 seeds or more"):
        read_results(STUDY, out, seeds=2)
    assert run_conversion(STUDY, out, seeds=2) == 1 + len(arms_of(STUDY, out, 1))
    assert list(parts(out)) == list(parts(study_folder))
    for name, path in parts(out).items():
        assert measured(path) == measured(study_folder / name)
    losses = [json.loads((out / f"parts/seed{seed}/prepared.json").read_text())["losses"] for seed in (0, 1)]
    assert losses[0][-1] != losses[1][-1]


def test_the_numbers_of_a_converted_model_are_those_of_its_plain_forward_pass(study_folder, tmp_path):
    """With a mask, or with all weights of linear attention at once; of weights at which a conversion changes much."""
    out = tmp_path / "study"
    shutil.copytree(study_folder, out)
    (out / "parts/seed1/prepared.json").unlink()
    checkpoint = out / "models" / "seed1" / f"checkpoint-{STUDY.steps}"
    model = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
    model.save_pretrained(checkpoint)
    prepare(STUDY, out, 1)
    prepared = json.loads((out / "parts/seed1/prepared.json").read_text())
    forms = forms_from(prepared["forms"])
    probe = probes(STUDY).needles
    sequence, row = probe.answer_rows.unbind(-1)
    pooled = {}
    for one, stored in zip(prepared["sets"], prepared["converted"], strict=True):
        kept = [KVHead(*head) for head in one["heads"]]
        left = [KVHead(i, h) for i in range(2) for h in range(2) if KVHead(i, h) not in kept]
        if one["form"] == "window":
            converted = masked(model, left, length=32, window=STUDY.window, sink=one["sink"])
        else:
            converted = linear_heads(model, {head: forms[head] for head in left}, length=32)
        with torch.no_grad(), converted:
            logits = model(probe.tokens).logits[sequence, row]
        nats = torch.nn.functional.cross_entropy(logits, probe.tokens[sequence, row + 1], reduction="none")
        for distance in STUDY.distances:
            (found,) = (r for r in stored if (r["probe"], r["label"]) == ("needle", distance))
            assert found["nats"] == pytest.approx(nats[probe.classes == distance].mean().item(), abs=1e-4)
        pooled[one["method"]] = nats.mean().item()
    assert abs(pooled["none"] - pooled["all"]) > 0.02
    assert abs(pooled["none_linear"] - pooled["all"]) > 0.02
    assert abs(pooled["none_linear"] - pooled["none"]) > 0.02
    assert len(set(pooled.values())) > 5


def test_every_trained_arm_is_told_and_windowed_heads_see_nothing_far(results):
    recall, role = recall_by_seed(results), kept_role(results)
    assert set(recall.training) == {NO_TRAINING, str(STUDY.continued[0]), "from scratch"}
    assert recall.groupby("training").seed.nunique().eq(2).all()
    assert role[role.method == "none"].score.eq(0).all()
    assert role[role.method == "all"].score.gt(0).all()
    full = damage_by_context(results)
    assert full[full.method == "all"]["mean"].eq(0).all()


def test_a_choice_made_early_is_worth_what_the_final_model_measures_with_those_heads(study_folder, results):
    table = lost_early(results)
    assert STUDY.early_steps == (1, 2)
    assert sorted(set(table.step)) == [1, 2, STUDY.steps]
    assert set(table.method) == {"window_gates", "induction"}
    last = table[table.step == STUDY.steps]
    assert last[last.method == "window_gates"].lost.eq(0).all()
    assert last.shared.eq(STUDY.n_kept).all()
    prepared = json.loads((study_folder / "parts/seed0/prepared.json").read_text())
    checkpoint = study_folder / "models" / "seed0" / f"checkpoint-{STUDY.steps}"
    m, asked = open_model(checkpoint), probes(STUDY)
    for one in prepared["early"]:
        kept = [KVHead(*head) for head in one["heads"]]
        windowed = [KVHead(i, h) for i in range(2) for h in range(2) if KVHead(i, h) not in kept]
        with m.restrict(windowed, STUDY.window):
            nats = m.answers(asked.documents).loss_nats.mean().item()
        is_it = (table.seed == 0) & (table.step == one["step"]) & (table.method == one["method"])
        found = table[is_it & (table.probe == "documents")]
        assert found.nats.item() == pytest.approx(nats, abs=1e-5)
        own = last[(last.seed == 0) & (last.method == "window_gates") & (last.probe == "documents")].nats.item()
        assert found.lost.item() == pytest.approx(nats - own, abs=1e-5)
    early = open_model(study_folder / "models" / "seed0" / "checkpoint-1")
    scores = score(early, ["induction"], probes=[asked.repeats]).set_index(["layer", "head"]).score
    first = next(one["heads"] for one in prepared["early"] if (one["step"], one["method"]) == (1, "induction"))
    assert scores[tuple(first[0])] == pytest.approx(scores.max())


def test_a_choice_is_safe_from_the_first_step_after_which_none_loses_more(results):
    frame = results.early.copy()
    of_documents = frame[(frame.probe == "documents") & frame.label.isna()]
    frame.loc[of_documents[of_documents.method == "window_gates"].index, "nats"] = 1.0
    probe = of_documents[of_documents.method == "induction"]
    nats = {0: {1: 2.0, 2: 1.0, 3: 1.05}, 1: {1: 1.0, 2: 1.0, 3: 1.2}}  # by seed and step
    frame.loc[probe.index, "nats"] = [nats[seed][step] for seed, step in zip(probe.seed, probe.step, strict=True)]
    told = answers(replace(results, early=frame))
    assert "documents: by `window_gates` from 1, 1, by `induction` from 2, never" in told


def test_lock_in_and_causes_are_rank_correlations_of_the_stored_scores(results):
    scores = results.scores
    after = scores[(scores.seed == 0) & scores.lifted & (scores.detector == "sink")]
    arm = after[(after.training == "from scratch") & (after.method == "none")].sort_values(["layer", "head"])
    before = after[after.training == NO_TRAINING].sort_values(["layer", "head"])
    table = lock_in(results)
    found = table[(table.seed == 0) & (table.training == "from scratch") & (table.method == "none")]
    expected = before.score.reset_index(drop=True).rank().corr(arm.score.reset_index(drop=True).rank())
    assert found[found.detector == "sink"].spearman.item() == pytest.approx(expected)
    assert set(causes(results).damage) == {"window_gates", "leave_one_windowed", "restore_one", "linear_gates"}


def test_spearman_is_one_for_any_rise_minus_one_for_any_fall_and_unknown_for_a_constant():
    x = np.array([0.1, 3.0, -2.0, 7.0])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert np.isnan(spearman(x, np.ones(4)))


def test_the_report_has_seeds_sizes_time_tables_and_what_is_not_claimed(results, tmp_path):
    markdown, document = write_report(results, tmp_path)
    text, read = markdown.read_text(), json.loads(document.read_text())
    assert "2 layers × 2 heads × 8" in text
    assert "seeds 0, 1" in text
    assert "CPU time" in text
    assert "What is not claimed" in text
    assert read["not_claimed"] in text
    assert read["study"]["steps"] == STUDY.steps
    assert read["cpu_s"]["pretraining"] > 0
    far = [
        r["far_accuracy"] for r in read["recall"] if (r["training"], r["method"]) == ("from scratch", "least_induction")
    ]
    cell = f"{np.mean(far):.2f} ± {np.std(far, ddof=1):.2f}"
    row = next(line for line in text.split("## Recall beyond the window after")[1].splitlines() if "`least_ind" in line)
    assert row.endswith(f"| {cell} |")
    assert {r["overlap"] for r in read["random"]} <= {0, 1}


def test_what_is_finished_so_far_is_reported_as_partial(study_folder, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study_folder, out)
    (out / "parts/seed1/prepared.json").unlink()
    arms = [arm.name for arm in arms_of(STUDY, out, 0)]
    for name in arms[1:]:
        (out / f"parts/seed0/{name}.json").unlink()
    found = read_finished(STUDY, out, seeds=2)
    assert found.seeds == (0,)
    assert {path.stem for path in found.missing} == {"prepared", *arms[1:]}
    markdown, document = write_report(found, tmp_path)
    assert f"Partial: seed 1 is not prepared; {len(arms) - 1} arms" in markdown.read_text()
    assert json.loads(document.read_text())["missing"][0] == "seed1/prepared"
    for name in arms:
        (out / f"parts/seed0/{name}.json").unlink(missing_ok=True)
    write_report(read_finished(STUDY, out, seeds=2), tmp_path)
    with pytest.raises(WorkbenchError, match="is missing; run the study for 1 seeds or more"):
        read_finished(STUDY, tmp_path / "none", seeds=1)


def test_shares_that_come_back_are_of_each_seeds_own_gap(results):
    table, measured = recovered_share(results), results.measured
    of = {m: table[(table.method == m) & (table.probe == "documents")].share.tolist() for m in ("all", "none")}
    assert of == {"all": [1, 1], "none": [0, 0]}
    mine = measured[(measured.seed == 1) & (measured.training == NO_TRAINING) & measured.label.isna()]
    nats = mine[mine.probe == "documents"].drop_duplicates("method").set_index("method").nats
    expected = (nats["none"] - nats["far_mass"]) / (nats["none"] - nats["all"])
    found = table[(table.seed == 1) & (table.method == "far_mass") & (table.probe == "documents")].share
    assert found.item() == pytest.approx(expected)
    expected = (nats["none_linear"] - nats["induction_linear"]) / (nats["none_linear"] - nats["all"])
    found = table[(table.seed == 1) & (table.method == "induction_linear") & (table.probe == "documents")].share
    assert found.item() == pytest.approx(expected)
    assert table[(table.method == "none_linear") & (table.probe == "documents")].share.tolist() == [0, 0]


def test_windows_and_linear_attention_are_told_side_by_side(results):
    """As many heads in common, and patterns of those that one alone keeps, as the stored rankings and scores say."""
    rankings, scores = results.rankings, results.scores
    first = {
        (seed, method): max(mine.itertuples(), key=lambda row: row.score)
        for (seed, method), mine in rankings.groupby(["seed", "method"])
    }
    shared = [int(first[s, "linear_gates"][3:5] == first[s, "window_gates"][3:5]) for s in (0, 1)]
    told = answers(results)
    assert f"towards a window {shared[0]}, {shared[1]} are the same, by seed" in told
    plain = scores[(scores.training == NO_TRAINING) & scores.lifted & (scores.detector == "previous_token")]
    every = plain.groupby("seed").score.mean()
    assert f"all heads: previous_token {every.mean():.2f} ± {every.std():.2f}" in told
    assert "linear attention" not in answers(replace(results, study=replace(STUDY, linear=None)))


def test_a_folder_written_before_a_setting_existed_is_the_same_study(study_folder, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study_folder, out)
    settings = json.loads((out / "study.json").read_text())
    for name in ("n_task", "hops", "trained", "is_from_scratch", "documents_first", "rope_theta"):
        settings.pop(name)
    (out / "study.json").write_text(json.dumps(settings))
    claim(STUDY, out)
    with pytest.raises(WorkbenchError, match="holds another study: n_task 1, asked for 2"):
        claim(replace(STUDY, n_task=2), out)


def test_another_study_a_stranger_folder_and_a_file_are_refused(study_folder, tmp_path):
    with pytest.raises(WorkbenchError, match=r"holds another study: n_heads 2, asked for 8.*Pass another --out"):
        run_conversion(quick_study(), study_folder, seeds=1)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(WorkbenchError, match="is not empty and holds no study"):
        run_conversion(STUDY, tmp_path, seeds=1)
    with pytest.raises(StoreNotWritable, match="cannot be written"):
        run_conversion(STUDY, tmp_path / "mine.txt", seeds=1)
    with pytest.raises(WorkbenchError, match="workers is 0; expected at least 1"):
        run_conversion(STUDY, tmp_path / "new", workers=0)


def test_a_damaged_part_is_named(study_folder, tmp_path):
    out = tmp_path / "study"
    shutil.copytree(study_folder, out)
    (out / "parts" / "seed0" / "prepared.json").write_text("{")
    with pytest.raises(WorkbenchError, match=r"prepared\.json is damaged .* delete it and run the study again"):
        run_conversion(STUDY, out, seeds=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--quick", "--seeds", "0"], "--seeds 0: expected at least 1"),
        (["--quick", "--medium"], "expected one of them"),
        (["--medium", "--so-far"], "prepared.json is missing"),
        (["--quick", "--out", "STUDY"], "holds another study"),
    ],
)
def test_the_command_refuses_what_it_cannot_do(study_folder, tmp_path, monkeypatch, capsys, words, said):
    words = [str(study_folder) if word == "STUDY" else word for word in words]
    out = [] if "--out" in words else ["--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["workbench", "experiment", "conversion", *words, *out])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert said in told.err


@pytest.mark.slow
def test_processes_measure_what_one_does(study_folder, tmp_path):
    told = []
    run_conversion(STUDY, tmp_path / "out", seeds=2, workers=2, on_progress=told.append)
    assert len(told) == len(parts(study_folder))
    for name, path in parts(tmp_path / "out").items():
        assert measured(path) == measured(study_folder / name)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The quick study by its command, as a user runs it: report.json's recall per seed."""
    out = tmp_path_factory.mktemp("quick") / "study"
    done = experiment("--quick", "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_in_the_quick_study_the_detected_heads_repair_what_windows_destroy_and_others_do_not(quick):
    table = pd.DataFrame(quick["recall"])
    short, n_kept = "60 steps at 0.3 of the peak rates", 3

    def far(method, training):
        mine = table[(table.method == method) & (table.training == training)]
        mine = mine[mine.n_kept == n_kept] if mine.n_kept.nunique() > 1 else mine
        return mine.groupby("seed").far_accuracy.mean()

    assert far("all", NO_TRAINING).min() > 0.75
    assert far("none", NO_TRAINING).max() < 0.08
    assert far("induction", NO_TRAINING).min() > 0.35
    assert far("induction", short).min() > 0.65
    assert far("none", short).max() < 0.08
    assert far("random_non_top", short).max() < 0.15
    assert far("least_induction", NO_TRAINING).max() < 0.1
    assert far("least_induction", "from scratch").min() > 0.7
    assert far("none_linear", short).max() < 0.12
    assert far("linear_gates", NO_TRAINING).min() > 0.25
    assert far("window_gates_linear", NO_TRAINING).max() < 0.2
    assert far("linear_gates", "from scratch").min() > 0.8
