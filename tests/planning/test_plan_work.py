"""What a plan costs, said beforehand and kept to; interrupted plans that go on; curves that look where it matters."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from tests.families import tiny
from workbench import KVHead, LossTolerance, Plan, WorkbenchError, open_model, plan, probes
from workbench.console import duration
from workbench.planning import Evaluation, Game, plan_cost, plan_work
from workbench.planning.conversion_objective import Outcome
from workbench.planning.efforts import EXTENTS, extent
from workbench.planning.keep_curves import Order, adaptive_counts, first_at, keep_curve
from workbench.planning.plan_work import PlanCost
from workbench.planning.planner import prepared
from workbench.store import finished_pieces
from workbench.store.finished_pieces import parts_folder

WINDOW = 6


def needles(seed, n_sequences=5):
    return probes.copy_needle(97, 20, length=36, n_sequences=n_sequences, seed=seed, name=f"needles_{seed}")


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("llama"))


UNSET = dict(unit="head", evaluation=None, effort="standard", baselines=None, choices=("window",), verdict=False)
TASKS = Evaluation(needles(0), (needles(1), needles(2)), context=64)


@pytest.fixture
def counted(m):
    """Tokens of the passes that the model runs; one with a gradient counts three times."""
    counts = {"forwards": 0, "backwards": 0, "tokens": 0}

    def count(_module, _args, options, out):
        counts["forwards"] += 1
        counts["backwards"] += out.logits.requires_grad
        counts["tokens"] += options["input_ids"].numel() * (3 if out.logits.requires_grad else 1)

    handle = m.model.register_forward_hook(count, with_kwargs=True)
    yield counts
    handle.remove()


@pytest.fixture
def unmeasured(monkeypatch):
    """A pace without the passes that measure it."""
    monkeypatch.setattr(plan_work, "_seconds", lambda run, n_passes: 1.0)


def in_all(cost, name):
    return sum(getattr(part, name) for part in cost.parts)


@pytest.mark.parametrize("effort", EXTENTS)
@pytest.mark.usefixtures("unmeasured")
def test_what_runs_is_what_was_said_it_would(m, counted, effort, monkeypatch):
    monkeypatch.setitem(EXTENTS, effort, replace(EXTENTS[effort], completeness=1e-12))  # every node is needed
    settings = dict(evaluation=TASKS, effort=effort, baselines=())
    cost = plan_cost(m, WINDOW, 1, **settings)
    assert counted["forwards"] == 0
    plan(m, WINDOW, 1, progress=False, **settings)
    assert counted == {name: in_all(cost, name) for name in counted}


@pytest.mark.usefixtures("unmeasured")
def test_baselines_cost_what_was_said_at_most(m, counted):
    """With four heads their curves meet the same sets again."""
    settings = dict(evaluation=TASKS, effort="quick")
    plan(m, WINDOW, 1, progress=False, baselines=(), **settings)
    without = counted["tokens"]
    cost = plan_cost(m, WINDOW, 1, baselines=("far_mass", "random"), **settings)
    by_part = {part.name: part.tokens for part in cost.parts}
    assert list(by_part) == ["ranking", "curve", "far_mass: ranking", "far_mass: curve", "random: curve"]
    assert by_part["far_mass: ranking"] == TASKS.probe.tokens.numel()
    assert by_part["random: curve"] == 5 * by_part["far_mass: curve"] == 5 * 3 * 2 * TASKS.probe.tokens.numel()
    plan(m, WINDOW, 1, progress=False, baselines=("far_mass", "random"), **settings)
    assert by_part["far_mass: ranking"] < counted["tokens"] - 2 * without <= cost.tokens - without


@pytest.mark.usefixtures("unmeasured")
def test_a_choice_of_conversions_costs_no_more_than_was_said_and_goes_on_where_it_stopped(m, counted, tmp_path):
    settings = dict(evaluation=TASKS, effort="quick", baselines=(), choices=("window", "linear"))
    cost = plan_cost(m, WINDOW, 1, **settings)
    assert [part.name for part in cost.parts] == ["choices", "ranking", "curve"]
    whole = plan(m, WINDOW, 1, progress=False, out=tmp_path / "whole.json", **settings)
    assert counted["tokens"] <= cost.tokens
    first = counted["tokens"]

    def interrupt(line):
        if line.startswith("what window_gates keeps"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plan(m, WINDOW, 1, progress=interrupt, out=tmp_path / "again.json", **settings)
    before = counted["tokens"]
    again = plan(m, WINDOW, 1, progress=False, out=tmp_path / "again.json", **settings)
    assert counted["tokens"] - before < 0.5 * first
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert repr(asdict(again)) == repr(asdict(whole))


@pytest.mark.usefixtures("unmeasured")
def test_a_path_that_needs_fewer_nodes_costs_less_than_was_said(m, counted, monkeypatch):
    monkeypatch.setitem(EXTENTS, "quick", replace(EXTENTS["quick"], completeness=1e6))
    cost = plan_cost(m, WINDOW, 1, evaluation=TASKS, effort="quick")
    made = plan(m, WINDOW, 1, evaluation=TASKS, effort="quick", progress=False)
    n_batches = len(Game(m, TASKS.probe, WINDOW).batches)
    assert made.evidence["nodes"] == 3
    assert counted["backwards"] == 3 * n_batches < in_all(cost, "backwards")


@pytest.mark.parametrize(("effort", "likely"), [("quick", 7), ("standard", 7), ("thorough", 11)])
def test_an_estimate_counts_the_nodes_that_a_path_usually_takes_and_says_what_it_takes_at_most(m, effort, likely):
    work = prepared(m, WINDOW, 1, 0.25, "window_gates", **{**UNSET, "evaluation": TASKS, "effort": effort})
    parts = [replace(part, seconds=60.0 * 24) for part in work.cost().parts if part.name == "ranking"]
    cost = PlanCost(tuple(parts))
    at_most = EXTENTS[effort].most_nodes
    assert cost.seconds == 60 * 24
    assert cost.likely_seconds == pytest.approx(60 * 24 * likely / at_most)
    assert f"{duration(cost.likely_seconds)}, at most {duration(cost.seconds)} (" in str(cost)
    assert list(cost.table().likely_seconds) == [cost.likely_seconds]


def test_efforts_pay_for_more_each_and_unknown_ones_are_refused():
    quick, standard, thorough = EXTENTS.values()
    for less, more in ((quick, standard), (standard, thorough)):
        assert less.n_sequences < more.n_sequences
        assert less.most_nodes < more.most_nodes
        assert set(less.baselines) <= set(more.baselines)
        assert less.n_points(90) < more.n_points(90)
        assert less.baseline_points <= more.baseline_points
    assert not any(name.startswith("random") for e in EXTENTS.values() for name in e.baselines)
    # The ranking, and a curve on held-out probes of twice as many tokens, in forward passes over the ranking's probe.
    assert standard.most_nodes * 3 + 2 * standard.n_points(90) <= 60
    with pytest.raises(WorkbenchError, match="effort is 'fast'; expected one of 'quick', 'standard', 'thorough'"):
        extent("fast")


class Interrupt(BaseException):
    """As a kill at this moment would be: nothing of ours catches it."""


@pytest.mark.usefixtures("unmeasured")
def test_a_plan_interrupted_after_each_piece_ends_with_the_same_bytes(m, tmp_path, monkeypatch):
    settings = dict(evaluation=TASKS, effort="quick", baselines=("far_mass", "random"), verdict=[64], progress=False)
    plan(m, WINDOW, 1, out=tmp_path / "whole.json", **settings)
    append, pieces = finished_pieces.append_line, []

    def append_and_die(path, line):
        append(path, line)
        if line.startswith("["):
            pieces.append(json.loads(line)[0])
            raise Interrupt

    monkeypatch.setattr(finished_pieces, "append_line", append_and_die)
    out = tmp_path / "plan.json"
    for _ in range(100):
        try:
            plan(m, WINDOW, 1, out=out, **settings)
        except Interrupt:
            assert not out.exists()
            continue
        break
    assert len(pieces) == len(set(pieces)) > 20
    assert {name.split()[0] for name in pieces} == {"gates", "outcome", "ranking", "verdict"}
    assert out.read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert not parts_folder(out).exists()
    assert any("no verdict over the length" in remark for remark in Plan.load(out).remarks)  # it was never trained


@pytest.mark.usefixtures("unmeasured")
def test_what_is_there_already_is_not_in_the_cost(m, tmp_path, monkeypatch, counted):
    out, says = tmp_path / "plan.json", []
    settings = dict(evaluation=TASKS, effort="quick", out=out)
    full = plan_cost(m, WINDOW, 1, **settings)
    with monkeypatch.context() as patch:
        patch.setattr("workbench.planning.planner.lost_nats", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            plan(m, WINDOW, 1, progress=False, **settings)
    before = dict(counted)
    left = plan_cost(m, WINDOW, 1, **settings)
    assert full.n_kept == 0
    assert left.n_kept == before["forwards"] + 1  # each pass is one, and the ranking as a whole
    assert left.tokens == 0 < full.tokens
    plan(m, WINDOW, 1, progress=says.append, **settings)
    assert counted == before
    assert f"{left.n_kept} pieces are there from before" in says[0]
    assert plan_cost(m, WINDOW + 1, 1, **settings).n_kept == 0


def test_other_weights_are_another_model(m):
    before = plan_work.model_digest(m)
    with torch.no_grad():
        weight = next(m.model.parameters())
        first = weight.flatten()[0].item()
        weight.view(-1)[0] += 1
        changed = plan_work.model_digest(m)
        weight.view(-1)[0] = first
    assert plan_work.model_digest(m) == before != changed
    with m.restrict([KVHead(0, 0)], 4):
        assert plan_work.model_digest(m) not in (before, changed)


class ThreeOutcomes(Game):
    """Two heads, and a loss per sequence for none, one and both of them converted."""

    def __init__(self, full, one, both):
        self.heads, self.seed, self.probe = (KVHead(0, 0), KVHead(0, 1)), 0, needles(0)
        self.by_number = [full, one, both]

    def outcome(self, heads=()):
        sums = self.by_number[len(heads)]
        return Outcome(float(np.mean(sums)), 0.0, tuple(sums))

    def cache_saved(self, kept, *, context):
        return 0.0


def test_a_points_interval_is_that_of_its_share_over_sequences():
    rng = np.random.default_rng(3)
    full, both = rng.gamma(2, 0.1, 12), 3 + rng.gamma(2, 0.5, 12)
    one = full + (both - full) * rng.uniform(0, 0.4, 12)
    order = Order(tuple((head,) for head in (KVHead(0, 0), KVHead(0, 1))))
    game = ThreeOutcomes(full, one, both)
    none, first, every = keep_curve("m", order, [game], counts=[0, 1, 2], context=1)
    assert (none.ci_lo, none.recovered, none.ci_hi) == (0, 0, 0)
    assert (every.ci_lo, every.recovered, every.ci_hi) == (1, 1, 1)
    shares = []
    for _ in range(20_000):
        at = rng.integers(12, size=12)
        shares.append((both[at].sum() - one[at].sum()) / (both[at].sum() - full[at].sum()))
    assert (first.ci_lo, first.ci_hi) == pytest.approx(np.percentile(shares, [2.5, 97.5]), abs=0.01)
    assert first.recovered == pytest.approx((both - one).sum() / (both - full).sum())


@pytest.mark.parametrize(("n_sequences", "gap"), [(4, 3.0), (12, 0.0)])
def test_few_sequences_or_a_gap_that_is_none_have_no_interval(n_sequences, gap):
    full = np.random.default_rng(0).normal(size=n_sequences)
    game = ThreeOutcomes(full, full + 0.1, np.roll(full, 1) + gap)
    (point,) = keep_curve("m", Order(((KVHead(0, 0),), (KVHead(0, 1),))), [game], counts=[1], context=1)
    assert np.isnan([point.ci_lo, point.ci_hi]).all()


@pytest.mark.parametrize(("keep", "which"), [(0, "none"), (1.0, "all"), (LossTolerance(1e9), "none")])
def test_a_budget_that_leaves_no_choice_says_so(m, keep, which):
    says = []
    made = plan(m, WINDOW, 1, keep, evaluation=TASKS, effort="quick", progress=says.append)
    assert len(made.keep) == (4 if which == "all" else 0)
    assert f"the budget keeps {which} of 4 heads: nothing is chosen" in says


class StepGame(Game):
    """Forty heads of which the first few of an order are needed, each for as much."""

    def __init__(self, n_needed):
        self.heads = tuple(KVHead(0, h) for h in range(40))
        self.needed, self.asked = set(self.heads[:n_needed]), set()
        self.seed, self.probe = 0, needles(0)

    def outcome(self, heads=()):
        self.asked.add(frozenset(heads))
        return Outcome(float(len(self.needed & set(heads))), 0.0)

    def cache_saved(self, kept, *, context):
        return 0.0


@pytest.mark.parametrize("n_needed", [1, 2, 7, 20, 39, 40])
def test_bisection_finds_what_the_whole_curve_says(n_needed):
    game, order = StepGame(n_needed), Order(tuple((KVHead(0, h),) for h in range(40)))
    whole = keep_curve("m", order, [game], counts=range(41), context=1)
    game.asked.clear()
    at_most = EXTENTS["quick"].n_points(40)
    counts = adaptive_counts(order, [game], at_most=at_most, measured=[10])
    assert first_at(keep_curve("m", order, [game], counts=counts, context=1)) == first_at(whole)
    assert len(counts) == len(game.asked) == at_most < 14
    assert {0, 10, 40} <= set(counts)


def test_a_window_that_costs_nothing_has_nothing_to_bisect():
    game, order = StepGame(0), Order(tuple((KVHead(0, h),) for h in range(40)))
    counts = adaptive_counts(order, [game], at_most=10)
    assert len(counts) == 10
    assert {0, 1, 40} <= set(counts)


def test_baselines_of_many_heads_have_points_at_the_ends_at_the_plan_and_between(m):
    work = prepared(m, WINDOW, 1, 0.25, "far_mass", **{**UNSET, "evaluation": TASKS, "effort": "standard"})
    counts = [0, 2, 3, 5, 8, 9, 10, 11, 12, 22, 45, 90]
    assert work.baseline_counts(counts, 22) == counts
    many = replace(work, game=StepGame(9))
    assert many.baseline_counts(counts, 22) == [0, 3, 9, 22, 45, 90]
    assert len(many.baseline_counts(counts, 0)) == 6


@pytest.mark.usefixtures("unmeasured")
def test_a_bar_counts_the_tokens_of_all_passes_and_the_cost_is_said_where_it_is_watched(m, monkeypatch, capsys):
    settings = dict(evaluation=TASKS, effort="quick")
    made = plan(m, WINDOW, 1, **settings)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("workbench.console.is_watched", lambda: True)
    monkeypatch.setattr("workbench.planning.planner.is_watched", lambda: True)
    plan(m, WINDOW, 1, progress=False, **settings)
    assert capsys.readouterr().err == ""
    plan(m, WINDOW, 1, **settings)
    shown = capsys.readouterr().err
    n_tokens = TASKS.probe.tokens.numel()
    total = int(made.evidence["nodes"]) * n_tokens * 3 + 2 * 5 * n_tokens
    assert f"{total}/{total}" in shown
    assert "4 heads, ranked on 5 × 36 tokens: about" in shown
    assert not m.model._forward_hooks


def test_a_long_plan_says_so_where_nobody_watches(m, monkeypatch, capsys):
    monkeypatch.setattr(plan_work, "_seconds", lambda run, n_passes: 1000.0)
    plan(m, WINDOW, 1, evaluation=TASKS, effort="quick")
    assert "4 heads, ranked on 5 × 36 tokens: about" in capsys.readouterr().err


def test_a_context_beyond_the_models_is_remarked_on(m):
    far = replace(TASKS, context=9000)
    remarks = plan(m, WINDOW, 1, evaluation=far, effort="quick", progress=False).remarks
    assert "Caches are counted at 9,000 tokens, and the model's context has 8,192." in remarks
    near = plan(m, WINDOW, 1, evaluation=TASKS, effort="quick", progress=False).remarks
    assert not any("Caches" in remark for remark in near)
