"""The kept study of four models pretrained on Python source shows what its README says."""

from pathlib import Path

import numpy as np
import pytest

from workbench.runs import open_run
from workbench.store import Store

STUDY = Path(__file__).parent.parent / "examples" / "python_source"


@pytest.fixture(scope="module")
def run():
    return open_run(STUDY / "full")


VARIANTS = ("full", "sliding", "hybrid", "linear")


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_kept_runs_are_whole(variant):
    run = open_run(STUDY / variant)
    assert Store.open(STUDY / variant).check() == []
    assert run.status().is_complete
    assert run.status().failed == 0
    assert len(run.checkpoints()) == 30


def test_they_are_small():
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


@pytest.mark.parametrize(
    ("variant", "first", "how_many", "best"),
    [
        ("full", (2, 2, 2.43e6), 2, 0.48),
        ("sliding", (3, 1, 2.38e6), 4, 0.38),
        ("hybrid", (3, 2, 2.87e6), 2, 0.53),
        ("linear", None, 0, 0.07),
    ],
)
def test_induction_heads_of_each_variant(variant, first, how_many, best):
    run = open_run(STUDY / variant)
    heads = run.emergence("induction", probe="text").query("verdict == 'emerged'").sort_values("n50")
    assert len(heads) == how_many
    if first is not None:
        assert (heads.iloc[0]["layer"], heads.iloc[0]["head"]) == first[:2]
        assert heads.iloc[0]["n50"] == pytest.approx(first[2], rel=0.01)
    assert run.scores(detector="induction", probe="text", step="last")["score"].max() == pytest.approx(best, abs=0.005)
    copied = run.emergence("previous_token", probe="text").query("verdict == 'emerged'")["n50"]
    assert copied.min() < 6e5


@pytest.mark.parametrize(
    ("variant", "mean", "late", "helped"),
    [
        ("full", 2.09, 1.79, -0.72),
        ("sliding", 2.19, 2.01, -0.55),
        ("hybrid", 2.08, 1.76, -0.79),
        ("linear", 2.49, 2.39, -0.23),
    ],
)
def test_what_context_is_worth_to_each_variant_at_the_end(variant, mean, late, helped):
    losses = open_run(STUDY / variant).metrics(probe="text", metric="loss_nats")
    last = losses.loc[losses["position"].notna() & (losses["tokens"] == losses["tokens"].max())]
    by_position = last.set_index("position")["value"]
    of_late = by_position[by_position.index >= 0.75 * (by_position.index.max() + 1)].mean()
    of_early = by_position[(by_position.index >= 16) & (by_position.index < 32)].mean()
    assert by_position.mean() == pytest.approx(mean, abs=0.006)
    assert of_late == pytest.approx(late, abs=0.006)
    assert of_late - of_early == pytest.approx(helped, abs=0.006)


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
