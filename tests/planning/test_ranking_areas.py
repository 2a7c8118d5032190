"""The benchmark of rankings: areas of known curves, paired differences, and a kept file whose other sections stay."""

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZES = {"needles": 30, "hops": 30}


@pytest.fixture
def areas(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import ranking_areas

    yield ranking_areas
    for name in ("ranking_areas", "ranking_tables"):
        sys.modules.pop(name, None)


@pytest.fixture
def tables(areas):
    import ranking_tables

    return ranking_tables


def losses(areas, share, gaps):
    """Sequences that lose `gaps` nats with no head kept, of which `share[k]` is back with k heads."""
    counts = np.arange(len(share), dtype=float)
    return areas.Losses(counts, (1 - np.array(share))[:, None] * gaps)


def test_the_area_is_the_mean_share_that_is_back_whatever_the_sequences_lose(areas):
    gaps = np.random.default_rng(0).uniform(1, 5, 60)
    once = areas.all_alike(60)
    assert losses(areas, [0, 0.25, 0.5, 0.75, 1], gaps).areas(once)[0] == pytest.approx(0.5)
    assert losses(areas, [0, 1, 1, 1, 1], gaps).areas(once)[0] == pytest.approx(0.875)
    assert losses(areas, [0, 1, 1, 1, 1], gaps).areas(once, up_to=1)[0] == pytest.approx(0.5)


def test_a_difference_of_one_model_is_known_better_than_its_areas(areas):
    rng = np.random.default_rng(1)
    nats = np.sort(rng.uniform(0, 5, (9, 60)), 0)[::-1]
    first = areas.Losses(np.arange(9.0), nats)
    second = areas.Losses(np.arange(9.0), np.where(np.arange(9)[:, None] == 4, nats + 0.1, nats))
    of_areas = np.ptp(np.percentile(first.areas(areas.drawn_again(SIZES)), [2.5, 97.5]))
    found = areas.difference([first], [second], SIZES)
    assert found.low < found.mean < found.high
    assert found.low > 0
    assert found.high - found.low < of_areas / 5
    same = areas.difference([first], [first], SIZES)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_a_kind_is_judged_on_its_own_sequences(areas):
    gaps = np.ones(60)
    good, bad = losses(areas, [0, 1, 1], gaps), losses(areas, [0, 0, 1], gaps)
    mixed = areas.Losses(good.counts, np.concatenate([good.nats[:, :30], bad.nats[:, 30:]], 1))
    assert areas.difference([mixed], [good], SIZES, "needles").mean == 0
    assert areas.difference([mixed], [good], SIZES, "hops").mean == pytest.approx(-0.5)


def test_at_one_count_the_shares_that_are_back_are_compared(areas, tables):
    gaps = np.random.default_rng(2).uniform(1, 2, 60)
    good, bad = losses(areas, [0, 0.9, 1], gaps), losses(areas, [0, 0.5, 1], gaps)
    at_one = areas.difference([bad], [good], SIZES, count=1)
    assert (at_one.mean, at_one.low, at_one.high) == pytest.approx((-0.4, -0.4, -0.4))
    assert areas.difference([bad], [good], SIZES, count=2).mean == pytest.approx(0)
    lines = tables._by_count({"window_gates": [good], "induction": [bad]}, SIZES)
    assert lines[2] == "| ranking | 1 | 1: − window_gates [95 %] |"
    assert lines[-1] == "| `induction` | 0.500 | -0.4000 [-0.4000, -0.4000] |"


def test_new_sections_leave_those_written_by_hand_and_of_other_models(tables, tmp_path):
    path = tmp_path / "rankings.md"
    path.write_text("# Old\n\nold words\n\n## demo\n\nold demo\n\n## By hand\n\n- kept\n")
    tables.write(path, "New", "about", {"demo": ["## demo", "", "new demo"], "large": ["## large", "", "found"]})
    assert path.read_text() == ("# New\n\nabout\n\n## demo\n\nnew demo\n\n## By hand\n\n- kept\n\n## large\n\nfound\n")
