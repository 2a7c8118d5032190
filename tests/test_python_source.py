"""The kept study of a model pretrained on Python source says what its README says."""

from pathlib import Path

import pytest

from workbench.run import open_run

STUDY = Path(__file__).parent.parent / "examples" / "python_source"


@pytest.mark.parametrize(("name", "onset", "induction"), [("full", 392_801, 0.25)])
def test_previous_token_heads_emerge_and_induction_on_repeats_has_not_formed(name, onset, induction):
    run = open_run(STUDY / name)
    assert run.status().is_complete
    assert len(run.checkpoints()) == 30
    heads = run.emergence("previous_token", probe="text").set_index(["layer", "head"])
    assert heads.loc[(0, 1), "verdict"] == "emerged"
    assert heads.loc[(0, 1), "n50"] == pytest.approx(onset, rel=0.01)
    last = run.scores(detector="induction", step="last", kind="full")
    best = last.groupby("probe").score.max()
    assert best["text"] == pytest.approx(induction, abs=0.01)
    assert best["repeats"] < 0.1
