"""How wide a window a head needs, and whether it is the long context that it is needed for."""

import numpy as np
import pytest
import torch

from tests.families import tiny
from tests.planning.junction import ANSWER, SUM, JunctionModel
from tests.planted import BOS, VOCABULARY
from workbench import KVHead, WorkbenchError, open_model, window_gates
from workbench.planning import Game, need_global, rank, window_ladder, windowed_each
from workbench.probes import copy_needle, make_probe


def answer_from(distance, n_sequences=4):
    """The answer at the last row depends on the first token, `distance` tokens before it."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(10, VOCABULARY, (n_sequences, distance + 2), generator=generator)
    tokens[:, 0], tokens[:, -1] = BOS, ANSWER
    rows = torch.stack([torch.arange(n_sequences), torch.full((n_sequences,), distance)], -1)
    return make_probe(f"from_{distance}", tokens, answer_rows=rows)


def test_a_window_is_safe_from_where_it_reaches_what_the_head_reads():
    """The source lies 20 tokens before the row, so that a window of 21 sees it and one of 20 does not."""
    found = window_ladder(open_model(JunctionModel(SUM)), answer_from(20), [64, 20, 8, 21], tolerance=0.01)
    assert found.windows == (8, 20, 21, 64)
    assert found.smallest_safe == (21, 21)
    assert (found.scores[:, :2] > 0.1).all()
    assert found.scores[:, 2:] == pytest.approx(np.zeros((2, 2)), abs=1e-5)
    assert found.lost_together == pytest.approx(0, abs=1e-5)
    assert found.table().smallest_safe.tolist() == [21, 21]
    assert found.table()[20].tolist() == found.scores[:, 1].tolist()


def test_a_head_without_a_safe_window_sees_everything():
    m, probe = open_model(JunctionModel(SUM)), answer_from(20)
    first, second = window_gates(m, probe, 8).scores
    assert first < second
    between = window_ladder(m, probe, [8, 16], tolerance=float(first + second) / 2)
    assert between.smallest_safe == (8, None)
    assert between.table().smallest_safe.isna().tolist() == [False, True]
    g = Game(m, probe, 8)
    assert between.lost_together == pytest.approx(float((g.nats([KVHead(0, 0)]) - g.nats()).mean()), abs=1e-6)


def test_each_head_has_its_own_window():
    m = open_model(tiny("llama"))
    tokens = copy_needle(97, 20, length=36, n_sequences=2).tokens
    with windowed_each(m, {KVHead(0, 0): 4, KVHead(1, 1): 9}, 1):
        found = m.model(input_ids=tokens, use_cache=False).logits
    with m.restrict([KVHead(0, 0)], 4, 1), m.restrict([KVHead(1, 1)], 9, 1):
        assert torch.equal(found, m.model(input_ids=tokens, use_cache=False).logits)


def test_a_head_is_needed_at_long_context_only():
    """At short context the window reaches the source, and nothing is lost there."""
    short, long = answer_from(5), answer_from(47)
    m = open_model(JunctionModel(SUM))
    table = need_global(m, short, long, 16)
    expected = window_gates(m, long, 16).scores
    assert table.short.to_numpy() == pytest.approx([0, 0], abs=1e-5)
    assert table.long.to_numpy() == pytest.approx(expected)
    assert table.need_global.to_numpy() == pytest.approx(expected, abs=1e-5)
    assert (table.per_doubling * np.log2(49 / 7)).to_numpy() == pytest.approx(table.need_global.to_numpy())
    assert (table.ci_lo <= table.need_global + 1e-9).all()
    assert (table.need_global <= table.ci_hi + 1e-9).all()
    assert list(zip(table.layer, table.kv_head, strict=True)) == [(0, 0), (0, 1)]


def test_what_is_lost_at_any_length_is_not_needed_at_long_context():
    m = open_model(JunctionModel(SUM))
    table = need_global(m, answer_from(23), answer_from(47), 8)
    assert (table.short > 0.1).all()
    assert table.need_global.abs().max() < 0.05 * table.long.min()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda m: window_ladder(m, answer_from(20), []), r"no window was given; expected some, such as \[64"),
        (lambda m: window_ladder(m, answer_from(20), [0, 4]), "window 0"),
        (lambda m: window_ladder(m, answer_from(20), [4], tolerance=-1.0), "tolerance of -1.0 nats"),
        (lambda m: need_global(m, answer_from(20), answer_from(9), 4), "long probe has 11 tokens, the short one 22"),
    ],
)
def test_what_makes_no_sense_is_refused(call, told):
    with pytest.raises(WorkbenchError, match=told):
        call(open_model(JunctionModel(SUM)))


def test_results_print_in_a_line():
    m, probe = open_model(JunctionModel(SUM)), answer_from(20)
    shown = [window_ladder(m, probe, [8, 21]), window_gates(m, probe, 8), rank(Game(m, probe, 8), "window_gates")]
    ladder, gates, ranking = map(repr, shown)
    assert ladder.startswith("WindowLadder(2 heads, windows 8, 21: 2 have one within 0.01 nats, ")
    assert gates.startswith("WindowGates(2 heads on 4 sequences: ")
    assert ranking.startswith("Ranking(window_gates, 2 heads in nats: L0KV1 ")
    assert all("\n" not in text and len(text) < 200 for text in (ladder, gates, ranking))
