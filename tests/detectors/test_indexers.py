"""Scores of selected keys come with intervals, name what they are of, and say why there are none."""

import pytest
import torch

from tests.families import random_tokens, tiny
from tests.selecting_families import SELECTED
from workbench import WorkbenchError, open_model, probes, score
from workbench.detectors import UnscoredWarning
from workbench.kernels import Far

NAMES = ["selection_coverage", "answer_selected", "selection_reach", "selection_far", "selection_persistence"]


def test_every_head_of_a_selecting_layer_has_scores_with_intervals_and_no_other_head():
    m, probe = open_model(tiny("dots3_note")), probes.copy_needle(97, [9, 12], length=24, n_sequences=6)
    names = NAMES
    table = score(m, names, probes=probe, far=Far(6), progress=False)
    sparse, sliding = table[table.kind == "sparse"], table[table.kind == "sliding"]
    assert len(sparse) == len(sliding) == 4 * len(names)
    assert (sparse.score.between(sparse.ci_lo, sparse.ci_hi) & (sparse.n_seq == 12)).all()
    assert sliding.score.isna().all()
    assert sliding.n.eq(0).all()
    assert set(table[table.detector == "selection_far"]["flags"]) == {"far_window=6;far_sink=0"}
    # All heads of a layer share the selection; how much of its attention it covers is each head's own.
    of_heads = sparse.groupby("detector").score.nunique()
    assert of_heads["selection_coverage"] == 4
    assert of_heads.drop("selection_coverage").eq(1).all()


@pytest.mark.parametrize(
    ("family", "n_tokens", "name", "reason"),
    [
        ("llama", 37, "selection_coverage", "no layer of the model selects keys"),
        (
            "deepseek_v32",
            SELECTED,
            "selection_reach",
            "the layers select 5 keys of a row, its longest text has 5 tokens",
        ),
        ("dots3_note", 37, "selection_overlap", "only one layer selects keys"),
    ],
)
def test_a_score_that_is_not_there_says_why(family, n_tokens, name, reason):
    with pytest.warns(UnscoredWarning, match=reason):
        table = score(open_model(tiny(family)), [name], random_tokens(2, n_tokens))
    assert table.score.isna().all()
    assert set(table["flags"]) == {f"no_rows={reason}"}


def test_scores_of_answers_need_a_probe_that_has_some():
    with pytest.raises(WorkbenchError, match="need a probe with answers"):
        score(open_model(tiny("deepseek_v32")), ["answer_selected"], torch.zeros(1, 9, dtype=torch.long))
