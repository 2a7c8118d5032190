"""Curves by hand: which counts, how large an area, from where on enough is back; and how far a budget goes."""

import numpy as np
import pytest

from tests.planning.junction import AND, OR, JunctionModel, far_answer
from workbench import KVBytes, KVHead, LossTolerance, WorkbenchError, open_model
from workbench.planning import Game, area_under, first_at
from workbench.planning.budgets import check_budget, lost_nats, n_affordable
from workbench.planning.conversion_objective import Outcome
from workbench.planning.keep_curves import Order, keep_counts, keep_curve, order_of
from workbench.planning.rankings.chance import random_order, shuffled_in_layers
from workbench.planning.rankings.registry import Ranking
from workbench.store.plan_file import CurvePoint

HEADS = tuple(KVHead(layer, h) for layer in range(3) for h in range(2))


def points(recovered, n_kept=None, method="m", probe="p"):
    n_kept = range(len(recovered)) if n_kept is None else n_kept
    return [CurvePoint(method, probe, n, 0.0, float(r), 0.0, 0.0) for n, r in zip(n_kept, recovered, strict=True)]


def test_few_heads_are_counted_one_by_one_and_many_evenly():
    assert keep_counts(4) == [0, 1, 2, 3, 4]
    counts = keep_counts(512)
    assert (counts[0], counts[-1], len(counts)) == (0, 512, 16)
    assert set(np.diff(counts)) <= {34, 35}


def test_the_area_is_the_mean_recovered_share():
    assert area_under(points([0, 1, 1])) == pytest.approx(0.75)
    assert area_under(points([0, 0.5, 1], n_kept=[0, 2, 4])) == pytest.approx(0.5)
    assert area_under(points([0, 1, 1, 0])[::-1]) == pytest.approx(2 / 3)
    assert np.isnan(area_under(points([1])))
    assert np.isnan(area_under(points([np.nan, np.nan])))


def test_enough_is_back_from_where_it_never_falls_short_again():
    assert first_at(points([0, 0.96, 0.9, 0.97, 1])) == 3
    assert first_at(points([0, 0.96, 0.9, 0.97, 1]), 0.9) == 1
    assert first_at(points([0.95, 1])) == 0
    assert first_at(points([0, np.nan])) is None


@pytest.mark.parametrize("measure", [area_under, first_at])
def test_points_of_two_curves_are_no_curve(measure):
    with pytest.raises(WorkbenchError, match=r"of 2 curves .m on p, m on q.; pass those of one"):
        measure(points([0, 1]) + points([0, 1], probe="q"))


def test_layers_are_ordered_by_the_sum_of_their_heads():
    ranking = Ranking("m", "nats", HEADS, np.array([5.0, -5, 1, 1, 4, 0]))
    layers = order_of(ranking, "layer")
    assert [group[0].layer for group in layers.groups] == [2, 1, 0]
    assert layers.first(1) == [KVHead(2, 0), KVHead(2, 1)]
    assert layers.without(2) == [KVHead(0, 0), KVHead(0, 1)]
    assert order_of(ranking, "head").first(2) == [KVHead(0, 0), KVHead(2, 0)]


def test_shuffling_in_layers_keeps_as_many_of_each_layer():
    ranking = Ranking("m", "nats", HEADS, np.array([5.0, -5, 1, 1, 4, 0]))
    orders = [shuffled_in_layers(ranking, seed).order for seed in range(8)]
    for order in orders:
        assert [head.layer for head in order] == [head.layer for head in ranking.order]
    assert len({tuple(order) for order in orders}) > 1
    assert random_order(HEADS, 1).order == random_order(HEADS, 1).order != random_order(HEADS, 2).order


def in_order(*heads):
    return Order(tuple((head,) for head in heads))


@pytest.mark.parametrize(("junction", "one"), [(OR, 1.0), (AND, 0.0)])
def test_the_curve_is_what_the_kept_heads_bring_back(junction, one):
    game = Game(open_model(JunctionModel(junction)), far_answer(), 4)
    curve = keep_curve("m", in_order(KVHead(0, 1), KVHead(0, 0)), [game], counts=[0, 1, 2], context=20)
    assert [p.recovered for p in curve] == pytest.approx([0, one, 1], abs=1e-3)
    assert [p.accuracy for p in curve] == [0, one, 1]
    assert [p.kv_saved for p in curve] == pytest.approx([16 / 20, 8 / 20, 0])
    assert {(p.method, p.probe) for p in curve} == {("m", "far")}


def test_outcomes_are_asked_for_once(monkeypatch):
    m = open_model(JunctionModel(OR))
    game, asked = Game(m, far_answer(), 4), []
    answers = m.answers
    monkeypatch.setattr(m, "answers", lambda probe: (asked.append(1), answers(probe))[1])
    order = in_order(KVHead(0, 0), KVHead(0, 1))
    for _ in range(3):
        keep_curve("m", order, [game], counts=[0, 1, 2], context=20)
    assert len(asked) == 3


def test_a_budget_buys_what_it_says():
    game = Game(open_model(JunctionModel(AND)), far_answer(), 4)
    order = in_order(KVHead(0, 1), KVHead(0, 0))
    size = 4 * game.m.layers[0].d_head

    def bought(keep):
        return n_affordable(keep, order, [game], context=20)

    assert [bought(share) for share in (0, 0.5, 1)] == [0, 1, 2]
    assert bought(KVBytes((4 + 4) * size)) == bought(KVBytes((20 + 4) * size - 1)) == 0
    assert bought(KVBytes((20 + 4) * size)) == 1
    assert bought(KVBytes(1 << 40)) == 2
    with pytest.raises(WorkbenchError, match="bytes hold no plan: with every head converted the cache takes"):
        bought(KVBytes((4 + 4) * size - 1))
    assert bought(LossTolerance(0.01)) == 2
    assert bought(LossTolerance(10)) == 0


def test_a_tolerance_is_met_to_the_head_where_a_curve_is_coarse(monkeypatch):
    """Of 40 heads the first 23 are needed; the curve's own points are 3 apart."""
    heads = [KVHead(0, h) for h in range(40)]
    order = in_order(*heads)

    class Stub(Game):
        def __init__(self):
            pass

        def outcome(self, windowed=()):
            return Outcome(1.0 if set(windowed) & set(heads[:23]) else 0.0, 0.0)

    assert 23 not in keep_counts(40)
    assert n_affordable(LossTolerance(0.5), order, [Stub()], context=1) == 23
    assert lost_nats(order, 22, [Stub()]) == 1
    assert lost_nats(order, 23, [Stub()]) == 0


@pytest.mark.parametrize("keep", [-0.1, 1.5, float("nan"), LossTolerance(-1), LossTolerance(float("nan"))])
def test_what_is_no_budget_is_refused(keep):
    with pytest.raises(WorkbenchError, match="expected"):
        check_budget(keep)
