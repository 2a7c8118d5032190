"""Runs beside each other: by class and onset, by index only where they share a checkpoint; and their figures."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.emergence.made_up import FEW, rising_heads, rows
from workbench import figures
from workbench.emergence import aligned, compare, counts, lock_in, same_heads, trace
from workbench.heads import Head, WorkbenchError


def table(seed, n=20, flat=12, **options):
    rng = np.random.default_rng(seed)
    score, _ = rising_heads(rng, FEW, n)
    quiet = rng.normal(0.02, 0.005, (flat, len(FEW)))
    return trace(rows(np.concatenate([score, quiet]), FEW, **options))


@pytest.fixture
def tables():
    return {"a": table(0), "b": table(1, n=10, flat=30)}


def test_heads_are_counted_by_class_and_run(tables):
    found = compare(tables).set_index("run")
    assert found.n_heads.to_dict() == {"a": 32, "b": 40}
    assert found.emerged.to_dict() == {"a": 20, "b": 10}
    assert found.never.to_dict() == {"a": 12, "b": 30}
    assert found.share.to_dict() == {"a": 20 / 32, "b": 10 / 40}
    assert found.loc["a"].first == tables["a"].n50.min()
    assert found.loc["a"]["median"] == np.nanmedian(tables["a"].n50)


def test_counts_over_tokens_rise_with_every_onset(tables):
    found = counts(tables)
    mine = found.loc[found.run == "a"]
    assert list(mine.n) == list(range(21))
    assert list(mine.amount) == [0, *sorted(tables["a"].n50.dropna())]
    assert mine.share.iloc[-1] == 20 / 32


def test_heads_meet_by_class_and_place_never_by_index(tables):
    found = aligned(tables)
    assert list(found.place) == list(range(1, 21))
    assert list(found.a) == sorted(tables["a"].n50.dropna())
    assert found.b.notna().sum() == 10
    assert list(found.columns) == ["detector", "probe", "place", "a", "b"]


def test_heads_are_compared_by_index_only_where_runs_share_a_checkpoint(tables):
    twins = {"a": tables["a"], "c": tables["a"].assign(final=tables["a"].final * 0.5)}
    found = same_heads(twins, {"a": {"w1", "w2"}, "c": {"w2", "w3"}}).iloc[0]
    assert (found.n_heads, found.rho) == (32, pytest.approx(1))
    assert found.ratio == pytest.approx(0.5)
    with pytest.raises(WorkbenchError, match=r"a and b share no checkpoint.*by class and onset"):
        same_heads(tables, {"a": {"w1"}, "b": {"w4"}})


def test_what_has_nothing_in_common_is_refused_with_what_there_is(tables):
    other = table(2, detector="sink")
    with pytest.raises(WorkbenchError, match=r"no detector.*a: induction on repeats; s: sink on repeats"):
        compare({"a": tables["a"], "s": other})
    with pytest.raises(WorkbenchError, match="no run to compare"):
        compare({})
    with pytest.raises(WorkbenchError, match="count in step and tokens: give tokens_per_step"):
        compare({"a": tables["a"], "t": table(3, tokens_per_step=None)})


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_figures_are_plain_figures_of_tables(tables, theme):
    rng = np.random.default_rng(0)
    score, _ = rising_heads(rng, FEW, 40)
    scores = rows(score, FEW, noise=rng).assign(ci_lo=lambda f: f.score - 0.02, ci_hi=lambda f: f.score + 0.02)
    drawn = [
        figures.onset(scores, trace(scores), Head(0, 3), theme=theme),
        figures.compare(tables, detector="induction", theme=theme),
        figures.lock_in(lock_in(scores), theme=theme),
    ]
    assert [type(figure) for figure in drawn] == [go.Figure] * 3
    onset, compared, locked = drawn
    assert onset.data[0].y == pytest.approx(score[3])
    assert "L0H3: emerged, half of its rise at" in onset.layout.title.text
    fitted = np.interp(np.log(FEW * 2048), np.log(onset.data[1].x), onset.data[1].y)
    assert np.abs(fitted - score[3]).max() < 0.05
    assert compared.data[0].y[-1] == 20 / 32
    within = next(line for line in locked.data if line.name == "within layers")
    assert list(within.y) == pytest.approx(lock_in(scores).lock_in_within.tolist())


def test_a_head_or_detector_that_is_not_there_is_refused(tables):
    with pytest.raises(WorkbenchError, match="L9H0 is not in these tables; they have layers 0, 1"):
        figures.onset(tables["b"], tables["b"], Head(9, 0))
    with pytest.raises(WorkbenchError, match="none of a, b has heads traced under sink"):
        figures.compare(tables, detector="sink")
