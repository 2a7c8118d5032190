"""The demo pretrains real models whose heads emerge as it says, and its stored scores can be recomputed by hand."""

import json
import os
import signal
import subprocess
import sys
from functools import partial

import pytest
from transformers import AutoModelForCausalLM

from tests.brute import scores
from tests.children import child, descendants, is_running, until
from tests.forking import WORKER
from tests.preloaded import Preloaded
from tests.quick_demo import HISTORY
from workbench.demo import ALL_VARIANTS, DISTANCES, copy_accuracy, demo_probes, findings, run_demo
from workbench.runs import open_run

WINDOW = 16


def scores_by_step(run, detector, probe):
    """Steps down, heads across."""
    return run.scores(detector=detector, probe=probe).pivot_table(
        index="step", columns=["layer", "head"], values="score"
    )


def onset(curve):
    """First checkpoint from which a curve stays at or above half its final value."""
    below = curve[curve < curve.iloc[-1] / 2].index
    return next(step for step in curve.index if not len(below) or step > below.max())


def onset_of_final_best(run, detector, probe):
    """Of the one head that is best at the end."""
    table = scores_by_step(run, detector, probe)
    return onset(table[table.iloc[-1].idxmax()])


def onset_of_best(run, detector, probe):
    """Of the best head at each checkpoint: where several heads end alike, which one ends best is chance."""
    return onset(scores_by_step(run, detector, probe).max(axis=1))


def recompute(out, variant, step, probe):
    """Every score of a checkpoint on a probe from the patterns the model itself returns."""
    folder = out / "checkpoints" / variant / f"checkpoint-{step}"
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    stored = open_run(out / "runs" / variant).scores(step=step, probe=probe.name)
    far = int(stored[stored.detector == "far_mass"]["flags"].iloc[0].split(";")[0].removeprefix("far_window="))
    return stored, scores(model, probe.tokens, far_window=far, targets=probe.target_cells)


def assert_stored_rows_are_recomputed(out, variant, step, probe):
    stored, expected = recompute(out, variant, step, probe)
    assert len(stored) > 0
    for row in stored.itertuples():
        b = expected[row.detector, row.layer, row.head]
        assert (row.n == 0 and b != b) or abs(row.score - b) <= 1e-4 * max(1, abs(b)), (
            row.detector,
            row.layer,
            row.head,
        )


@pytest.mark.parametrize("variant", ["full", "sliding"])
def test_stored_rows_are_recomputed_from_the_saved_checkpoints(demo, variant):
    steps = open_run(demo / "runs" / variant).checkpoints().step
    probe = next(p for p in demo_probes() if p.name == "repeats_near")
    assert_stored_rows_are_recomputed(demo, variant, int(steps.max()), probe)


def test_in_the_quick_demo_heads_emerge_over_real_checkpoints(demo):
    full, sliding = (open_run(demo / "runs" / v) for v in ("full", "sliding"))
    best = {(f.detector, f.probe): f for f in findings(full)}
    assert best["previous_token", "repeats"].score > 0.7
    assert best["induction", "repeats"].score > 0.5
    assert best["previous_token", "repeats"].onset_step < best["induction", "repeats"].onset_step
    assert full.scores(detector="induction", probe="repeats", step=0).score.max() < 0.1
    assert sliding.scores(detector="induction", probe="repeats", step="last").score.max() < 0.05
    far = [v for d, v in copy_accuracy(sliding).items() if d > WINDOW]
    assert max(far) < 0.1


def test_findings_agree_with_the_stored_rows(demo):
    run = open_run(demo / "runs" / "full")
    for found in findings(run):
        rows = run.scores(detector=found.detector, probe=found.probe, step="last")
        assert found.score == rows.score.max()
        assert found.onset_step == onset_of_final_best(run, found.detector, found.probe) or found.score < 0.1


def test_an_interrupted_demo_goes_on_from_its_checkpoints(demo):
    history = json.loads((demo / HISTORY).read_text())
    assert history["interrupted"]["exit_code"] == 130, history["interrupted"]
    assert "Traceback" not in history["interrupted"]["stderr"]
    after_first, after_second = history["times_of_an_early_checkpoint"]
    assert after_first == after_second
    document = json.loads(history["continued"]["stdout"])
    assert {f["detector"] for f in document["best_heads"]["full"]} >= {"induction", "retrieval", "sink"}


def test_the_processes_of_a_demo_end_when_it_is_killed(tmp_path):
    command = [sys.executable, "-m", "workbench.cli", "demo", "--quick", "--no-serve", "--out", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment, "start_new_session": True}
    start = partial(Preloaded, has_workers=True)
    with child(command, ignores_interrupts=True, start=start, **pipes) as demo:
        until(lambda: demo.poll() is not None or list(tmp_path.glob("checkpoints/*/checkpoint-*")))
        until(lambda: demo.poll() is not None or sum(WORKER in line for line in descendants(demo.pid).values()) == 2)
        started = descendants(demo.pid)
        assert sum(WORKER in line for line in started.values()) == 2
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(timeout=60) == -signal.SIGTERM
        until(lambda: not any(map(is_running, started)), 60)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_whole_demo_shows_what_it_says(tmp_path, seed):
    runs = {run.name: run for run in run_demo(tmp_path, seed=seed)}
    assert set(runs) == set(ALL_VARIANTS)
    for variant in ("full", "hybrid"):
        best = {(f.detector, f.probe): f for f in findings(runs[variant])}
        assert best["induction", "repeats"].score > 0.7
        assert best["retrieval", "copy_needle"].score > 0.7
        assert min(v for d, v in copy_accuracy(runs[variant]).items() if 12 <= d <= 52) > 0.8
    for variant in ("full", "hybrid", "linear"):
        before = onset_of_best(runs[variant], "previous_token", "repeats")
        assert before < onset_of_best(runs[variant], "induction", "repeats")
    inside = [copy_accuracy(runs["sliding"])[d] for d in DISTANCES if d <= WINDOW]
    beyond = [copy_accuracy(runs["sliding"])[d] for d in DISTANCES if d > WINDOW]
    assert min(inside) > 0.7
    assert max(beyond) < 0.1
    probe = next(p for p in demo_probes() if p.name == "repeats")
    for variant, run in runs.items():
        steps = sorted(run.checkpoints().step)
        for step in (0, steps[len(steps) // 2], steps[-1]):
            assert_stored_rows_are_recomputed(tmp_path, variant, int(step), probe)
