"""The kept study of a model pretrained on Python source says what its README says."""

from pathlib import Path

import numpy as np
import pytest

from workbench.run import open_run

STUDY = Path(__file__).parent.parent / "examples" / "python_source"


@pytest.fixture(scope="module")
def run():
    return open_run(STUDY / "full")


def test_the_kept_run_is_whole_and_small(run):
    assert run.status().is_complete
    assert run.status().failed == 0
    assert len(run.checkpoints()) == 30
    assert sum(file.stat().st_size for file in STUDY.rglob("*") if file.is_file()) < 10e6


def test_previous_token_heads_come_before_induction_heads(run):
    onsets = {}
    for detector in ("previous_token", "induction"):
        heads = run.emergence(detector, probe="text")
        onsets[detector] = heads.loc[heads["verdict"] == "emerged"].set_index(["layer", "head"])["n50"]
    assert onsets["previous_token"].min() == pytest.approx(464e3, rel=0.01)
    assert onsets["induction"].loc[(2, 2)] == pytest.approx(2.43e6, rel=0.01)
    assert onsets["induction"].loc[(3, 1)] == pytest.approx(2.90e6, rel=0.01)
    assert onsets["previous_token"].min() < onsets["induction"].min()


@pytest.mark.parametrize(
    ("detector", "probe", "best"),
    [
        ("previous_token", "text", 0.83),
        ("previous_token", "repeats", 0.82),
        ("induction", "text", 0.48),
        ("induction", "repeats", 0.31),
    ],
)
def test_the_highest_scores_at_the_end(run, detector, probe, best):
    assert run.scores(detector=detector, probe=probe, step="last")["score"].max() == pytest.approx(best, abs=0.005)


def test_context_begins_to_help_while_the_induction_heads_rise(run):
    losses = run.metrics(probe="text", metric="loss_nats")
    by_position = losses.loc[losses["position"].notna()].pivot_table(index="tokens", columns="position", values="value")
    late = by_position.loc[:, by_position.columns >= 0.75 * (by_position.columns.max() + 1)].mean(axis=1)
    early = by_position.loc[:, (by_position.columns >= 16) & (by_position.columns < 32)].mean(axis=1)
    helped = (late - early).to_numpy()
    tokens = np.asarray(by_position.index)
    assert helped[tokens == 1_916_928] > 0
    assert helped[-1] == pytest.approx(-0.72, abs=0.005)
    assert tokens[np.flatnonzero(helped > 0).max() + 1] <= 2_625_536


def test_patterns_of_every_checkpoint_are_kept(run):
    assert run.map(3, 1, step="last", probe="text").values.max() > 0.5
    assert set(run.maps.table()["ckpt"]) == set(run.checkpoints()["ckpt"])
