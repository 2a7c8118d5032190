"""Every checkpoint against every other, and heads in pairs: by name within a lineage, by rank between models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.synthetic_run import DEMO, write_run
from workbench.emergence import lock_in, paired, rank_agreement
from workbench.heads import WorkbenchError
from workbench.runs import open_run

FEW = {"steps": (0, 64, 256, 1024), "n_layers": 5, "n_heads": 6, "n_kv_heads": 2}


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    shape = replace(DEMO["hybrid"], **FEW, detectors=("induction", "learned_sink"))
    return open_run(write_run(folder / "run", shape)).scores


def by_ranks(one, other):
    return one.rank().corr(other.rank())


def test_each_pair_of_checkpoints_agrees_as_pandas_ranks_correlate(scores):
    table = scores(detector="induction")
    found = rank_agreement(table, table)
    wide = table.pivot(index=["layer", "head"], columns="ckpt", values="score")
    centred = wide - wide.groupby("layer").transform("mean")
    for row in found.itertuples():
        assert row.rho == pytest.approx(by_ranks(wide[row.ckpt], wide[row.reference]), abs=1e-9)
        rounded = centred[row.ckpt].round(9), centred[row.reference].round(9)
        assert row.rho_within == pytest.approx(by_ranks(*rounded), abs=1e-6)
        assert row.n_heads == 30
    assert found["ckpt"].unique().tolist() == ["step0", "step64", "step256", "step1024"]


def test_its_last_column_is_the_correlation_of_lock_in(scores):
    table = scores(detector="induction")
    last = rank_agreement(table, table).query("reference == 'step1024'").set_index("ckpt")
    known = lock_in(table).set_index("ckpt")
    for name in ("rho", "rho_within"):
        assert last[name].to_numpy() == pytest.approx(known[name].loc[last.index].to_numpy(), abs=1e-6)


def test_heads_without_scores_count_in_no_pair(scores):
    table = scores(detector="learned_sink")
    found = rank_agreement(table, table)
    assert set(found["n_heads"]) == {4 * 6}  # full layers have no learned sinks
    gone = table.assign(score=table["score"].mask((table["ckpt"] == "step64") & (table["layer"] == 0)))
    found = rank_agreement(gone, table).set_index(["ckpt", "reference"])["n_heads"]
    assert found["step64", "step0"] == 3 * 6
    assert found["step0", "step64"] == 4 * 6


def test_too_few_heads_say_nothing(scores):
    table = scores(detector="induction")
    few = table.loc[(table["layer"] == 0) & (table["head"] < 3)]
    assert rank_agreement(few, few)["rho"].isna().all()
    with pytest.raises(WorkbenchError, match="one lineage"):
        rank_agreement(few, table.loc[table["layer"] == 1])


def at(scores, ckpt):
    return scores(detector="induction", ckpt=ckpt)


def test_within_a_lineage_heads_meet_by_name_and_the_largest_change_is_first(scores):
    one, other = at(scores, "step64"), at(scores, "step1024")
    pairs = paired(one, other, by="head")
    assert (pairs["name"] == pairs["name_other"]).all()
    assert len(pairs) == 30
    assert (pairs["change"].abs().diff().dropna() <= 0).all()
    by_name = one.set_index(["layer", "head"])["score"]
    first = pairs.iloc[0]
    layer, head = map(int, first["name"][1:].split("H"))
    assert first["score"] == by_name[layer, head]


def test_between_models_the_strongest_meets_the_strongest(scores):
    one, other = at(scores, "step256"), at(scores, "step1024")
    pairs = paired(one, other, by="rank").sort_values("score", ascending=False)
    assert pairs["score"].tolist() == sorted(one["score"], reverse=True)
    assert pairs["score_other"].tolist() == sorted(other["score"], reverse=True)


def test_intervals_that_do_not_overlap_are_apart():
    def rows(score, low, high):
        place = {"layer": [0], "head": pd.array([1], dtype="Int64"), "kv_head": [0], "kind": ["full"]}
        return pd.DataFrame({**place, "score": [score], "ci_lo": [low], "ci_hi": [high]})

    assert paired(rows(0.1, 0.0, 0.2), rows(0.5, 0.4, 0.6), by="head")["apart"].tolist() == [True]
    assert paired(rows(0.1, 0.0, 0.45), rows(0.5, 0.4, 0.6), by="head")["apart"].tolist() == [False]
    assert paired(rows(0.1, np.nan, np.nan), rows(0.5, 0.4, 0.6), by="head")["apart"].tolist() == [False]
    with pytest.raises(WorkbenchError, match="by rank"):
        paired(rows(np.nan, 0, 0), rows(0.5, 0.4, 0.6), by="head")


def test_rankings_of_other_lengths_meet_at_equal_shares_and_say_nothing_of_noise(scores):
    few, many = at(scores, "step256").head(4), at(scores, "step1024")
    pairs = paired(few, many, by="share").sort_values("score", ascending=False)
    ranked = np.sort(many["score"].to_numpy())[::-1]
    assert pairs["score"].tolist() == sorted(few["score"], reverse=True)
    assert pairs["score_other"].tolist() == [ranked[i] for i in (3, 11, 18, 26)]  # the middles of four shares of 30
    assert pairs["apart"].isna().all()
    assert paired(few, many, by="rank")["apart"].isna().all()
    swapped = paired(many, few, by="share").sort_values("score", ascending=False)
    assert swapped["score"].tolist() == pairs["score_other"].tolist()
