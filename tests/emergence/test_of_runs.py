"""Emergence asked of runs: on made-up ones, on a real demo, and on the command line."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.children import run_child
from tests.command_process import workbench
from tests.preloaded import PreloadedReading
from tests.synthetic_run import DEMO, STEPS, write_run
from workbench.cli.main import app
from workbench.emergence import align
from workbench.heads import Row, WorkbenchError
from workbench.runs import open_run, summarise
from workbench.store import Origin, Store, canonical_digest

SMALL = replace(DEMO["full"], n_heads=8, n_kv_heads=8, detectors=("induction", "sink", "entropy"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "full", SMALL)


def test_a_run_gives_the_course_of_every_head(path):
    table = open_run(path).emergence("induction")
    assert len(table) == 24
    assert (table.verdict == "emerged").sum() >= 5
    emerged = table[table.verdict == "emerged"]
    assert (emerged.n50_lo <= emerged.n50).all()
    assert (emerged.n50 <= emerged.n50_hi).all()
    assert set(table.unit) == {"tokens"}


def test_a_run_gives_lock_in_and_says_it(path):
    run = open_run(path)
    table = run.lock_in("induction")
    assert list(table.step) == list(STEPS)
    assert run.lock_in("induction", against=1024).reference.unique().tolist() == ["step1024"]
    assert "formed early" in run.lock_in_sentence("induction")
    with pytest.raises(WorkbenchError, match="induction, sink"):
        run.lock_in("inductoin")


def test_a_run_gives_phase_changes_that_heads_can_be_aligned_with(path):
    run = open_run(path)
    changes = run.phase_changes(metric="copy_accuracy")
    pooled = changes[changes.distance.isna()].iloc[0]
    assert pooled.is_change
    aligned = align(run.emergence("induction"), pooled)
    assert set(aligned.relation) <= {"before", "during", "after"}
    assert len(aligned) == (run.emergence("induction").verdict == "emerged").sum()


def parallel_run(path):
    """One layer with an attention and a recurrent mixer, whose heads have the same numbers."""
    store = Store.create(path, job={}, versions={})
    for step, strong in ((1, 0.0), (2, 0.02), (4, 0.01), (8, 0.6), (16, 0.62), (32, 0.61), (64, 0.6), (128, 0.61)):
        origin = Origin("run", f"step{step}", canonical_digest(step), "c" * 32, None, None, step, step, step * 100)
        rows = [
            Row(0, 0, 0, kind, None, "sink", 1, "text", score, score, score, 0.04, 16, 64, math.nan, math.nan)
            for kind, score in (("full", strong), ("linear", 0.5))
        ]
        store.commit_scores(origin, canonical_digest([step]), rows, probe_digest="p", seq_len=64)
    return path


def test_two_mixers_of_a_layer_are_two_heads_in_top_and_emergence(tmp_path):
    run = open_run(parallel_run(tmp_path / "run"))
    best = run.top("sink").set_index("kind")
    assert best.score.to_dict() == {"full": 0.61, "linear": 0.5}
    assert best.onset_step.to_dict() == {"full": 8, "linear": 1}
    verdicts = run.emergence("sink").set_index("kind").verdict
    assert verdicts.to_dict() == {"full": "emerged", "linear": "at_first"}


def test_a_run_of_one_checkpoint_has_no_onsets_and_no_lock_in(tmp_path):
    run = open_run(write_run(tmp_path / "run", replace(SMALL, steps=(64,))))
    table = run.emergence("induction")
    assert set(table.verdict) <= {"never", "at_first"}
    assert table.n50.isna().all()
    with pytest.raises(WorkbenchError, match="at least two checkpoints"):
        run.lock_in("induction")
    said = summarise([run], detectors=["induction"]).sentences[0]["says"]
    assert said.startswith("no lock-in: ")


def test_runs_of_other_detectors_or_head_counts(path, tmp_path):
    wide = open_run(write_run(tmp_path / "wide", replace(SMALL, n_heads=16, n_kv_heads=16, seed=5)))
    found = summarise([open_run(path), wide], detectors=["induction"])
    classes = found.tables["classes"].set_index("run")
    assert classes.n_heads.to_dict() == {"full": 24, "wide": 48}
    other = open_run(write_run(tmp_path / "other", replace(SMALL, detectors=("retrieval",))))
    with pytest.raises(
        WorkbenchError, match=r"no detector that rises and that all runs have: full: .*other: retrieval"
    ):
        summarise([open_run(path), other])
    with pytest.raises(WorkbenchError, match="bear one name"):
        summarise([open_run(path), open_run(path)])


def test_the_verb_tells_classes_heads_changes_and_lock_in(path):
    told = workbench("emergence", path, "--detector", "induction")
    assert told.returncode == 0, told.stderr
    assert "Heads of each class" in told.stdout
    assert "full, induction on repeats: within layers" in told.stdout
    document = json.loads(workbench("emergence", path, "--detector", "induction", "--json").stdout)
    assert set(document) == {"classes", "heads", "phase_changes", "lock_in", "remarks"}
    run = open_run(path)
    first = run.emergence("induction").n50.min()
    assert document["heads"][0]["n50"] == pytest.approx(first)
    assert document["classes"][0]["n_heads"] == 24
    refused = workbench("emergence", path, "--detector", "inductoin")
    assert refused.returncode == 2
    assert "induction, sink" in refused.stderr


def test_emergence_imports_no_torch(path):
    code = f"""
import sys
from workbench.cli.main import app
from workbench.runs import summarise
from workbench.runs import open_run
summarise([open_run({str(path)!r})])
print(sorted({{"torch", "transformers", "scipy"}} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    ended = run_child(command, start=PreloadedReading, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_in_the_demo_previous_token_heads_come_before_induction_heads(demo_runs):
    run = open_run(next(folder for folder in demo_runs if folder.name == "full"))
    first = {
        detector: run.emergence(detector, probe="repeats").set_index(["layer", "head"])
        for detector in ("previous_token", "induction")
    }
    best = {detector: table.loc[table.final.idxmax()] for detector, table in first.items()}
    assert best["previous_token"].verdict == "emerged"
    assert best["induction"].verdict in ("emerged", "unconfirmed")
    assert best["previous_token"].n50_hi < best["induction"].fit_n50
    assert pd.notna(best["previous_token"].n50_lo)


def test_the_command_sets_onsets_beside_each_other_and_counts_heads(tmp_path):
    paths = [str(write_run(tmp_path / name, replace(SMALL, seed=seed))) for name, seed in (("one", 1), ("two", 2))]
    words = ["emergence", *paths, "--detector", "induction", "--aligned", "--counts"]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    assert "Onsets of the k-th head of each class" in said.stdout
    assert "Heads of each class that are there by a time" in said.stdout
    document = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    traced = open_run(paths[0]).emergence("induction")
    onsets = sorted(traced.n50.dropna())
    assert [row["one"] for row in document["aligned"] if row["one"] is not None] == pytest.approx(onsets)
    mine = [row for row in document["counts"] if row["run"] == "one"]
    assert [row["amount"] for row in mine] == pytest.approx([0, *onsets])
    assert [row["n"] for row in mine] == list(range(mine[0]["n"], mine[0]["n"] + len(onsets) + 1))
