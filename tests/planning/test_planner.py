"""wb.plan from a model to a plan: budgets, units, held-out probes, refusals."""

import math
import sys
from dataclasses import replace
from functools import partial

import pytest

from tests.children import run_child
from tests.families import random_tokens, tiny
from tests.linear_families import tiny as linear_tiny
from tests.planning.junction import AND, SUM, JunctionModel, far_answer
from tests.preloaded import Preloaded
from workbench import KVBytes, KVHead, LossTolerance, WorkbenchError, open_model, plan, probes
from workbench.planning import METHODS, Evaluation, default_evaluation, evaluation_on
from workbench.planning.rankings.window_gates import integrated
from workbench.store.cache_sizes import kv_bytes

WINDOW = 6


def needles(seed, **others):
    return probes.copy_needle(97, 20, length=36, n_sequences=5, seed=seed, name=f"needles_{seed}", **others)


@pytest.fixture(scope="module")
def m():
    return open_model(tiny("llama"))


@pytest.fixture(scope="module", autouse=True)
def three_nodes():
    """Enough to rank."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "window_gates", partial(integrated, nodes=3))
        yield


QUICK = Evaluation(needles(0), (needles(1),), context=64, baselines=())


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_a_share_of_the_heads_is_kept_the_best_first(m, share):
    made = plan(m, WINDOW, 1, share, evaluation=QUICK)
    assert len(made.keep) == 4 * share
    assert set(made.keep) == {r.head for r in made.ranking[: len(made.keep)]}
    assert [r.score for r in made.ranking] == sorted([r.score for r in made.ranking], reverse=True)
    assert all(r.ci_lo <= r.score <= r.ci_hi for r in made.ranking)
    assert set(made.keep) | set(made.windowed) == {KVHead(layer, h) for layer in range(2) for h in range(2)}


def far_answers(n_tokens):
    return replace(far_answer(n_tokens, 5), name=f"far_{n_tokens}")


def test_the_curve_runs_from_all_windowed_to_the_model_itself():
    m, held_out = open_model(JunctionModel(SUM)), (far_answers(22), far_answers(24))
    made = plan(m, WINDOW, 0, 0.5, evaluation=Evaluation(far_answers(20), held_out, context=64, baselines=()))
    table = made.curves()
    counts = table.groupby("probe").n_kept.apply(list)
    assert counts.to_dict() == {"far_22": [0, 1, 2], "far_24": [0, 1, 2]}
    ends = table.set_index("n_kept").recovered
    assert ends[0].tolist() == pytest.approx([0, 0])
    assert ends[2].tolist() == pytest.approx([1, 1])
    assert made.evidence["recovered"] == table[table.n_kept == 1].recovered.min()
    lost = table[table.n_kept == 1].nats.to_numpy() - table[table.n_kept == 2].nats.to_numpy()
    assert made.evidence["lost_nats"] == pytest.approx(lost.max())
    assert made.remarks == ()


def test_where_converting_every_head_loses_nothing_there_is_no_share_and_it_is_said(m):
    made = plan(m, WINDOW, 1, 0.5, evaluation=QUICK)
    lost = made.curve[0].nats - made.curve[-1].nats
    assert lost < 0  # an untrained model looks for no needles
    assert all(math.isnan(point.recovered) for point in made.curve)
    assert math.isnan(made.evidence["recovered"])
    remark, unable = (text for text in made.remarks if "unexplained" not in text)
    assert remark.startswith(f"on needles_1 the model loses {lost:.3g} nats with every head converted")
    assert "there is no gap to recover" in remark
    assert "the model itself gets" in unable


def test_gates_that_leave_much_unexplained_are_remarked_on(monkeypatch):
    monkeypatch.setitem(METHODS, "window_gates", partial(integrated, nodes=1))
    m, evaluation = open_model(JunctionModel(AND)), Evaluation(far_answers(20), (far_answers(22),), 64, baselines=())
    made = plan(m, WINDOW, 0, 0.5, evaluation=evaluation, verdict=False)
    error = made.evidence["completeness_error"]
    assert error > 0.05
    (remark,) = (text for text in made.remarks if "unexplained" in text)
    assert remark.startswith(f"gates towards a window leave {error:.0%} of ")


def test_heads_whose_own_window_is_no_wider_take_no_part_of_the_budget():
    m = open_model(tiny("gemma3"))
    (own,) = {i.window for i in m.layers if i.kind == "sliding"}
    full = [KVHead(i.index, h) for i in m.layers if i.kind == "full" for h in range(i.n_kv_heads)]
    made = plan(m, own, 0, 0.5, "far_mass", evaluation=QUICK)
    assert sorted(r.head for r in made.ranking) == full
    assert len(made.keep) == round(len(full) / 2)
    assert set(made.keep) | set(made.windowed) == set(full)
    assert made.kv_saved > 0
    with m.apply(made):
        m.answers(needles(1))


def test_what_the_curve_says_of_the_plan_is_what_the_model_does_under_it(m):
    made = plan(m, WINDOW, 1, 0.5, evaluation=QUICK)
    with m.apply(made):
        answers = m.answers(needles(1))
    point = next(p for p in made.curve if p.n_kept == 2)
    assert point.nats == pytest.approx(float(answers.loss_nats.mean()), abs=1e-5)
    assert point.kv_saved == made.kv_saved


def test_bytes_of_cache_are_not_exceeded(m):
    budget = kv_bytes(m.layers, {KVHead(0, 0)}, window=WINDOW, sink=1, context=64)
    made = plan(m, WINDOW, 1, KVBytes(budget), evaluation=QUICK)
    assert len(made.keep) == 1
    assert kv_bytes(m.layers, set(made.keep), window=WINDOW, sink=1, context=64) == budget


def test_a_loss_tolerance_holds_on_every_held_out_probe(m):
    evaluation = replace(QUICK, held_out=(needles(1), needles(2)))
    losses = plan(m, WINDOW, 1, 1.0, evaluation=evaluation).curves().pivot_table("nats", "n_kept", "probe")
    worst = (losses - losses.loc[4]).max(axis=1)
    tolerance = max(0.0, float(worst.loc[0:3].median()))
    made = plan(m, WINDOW, 1, LossTolerance(tolerance), evaluation=evaluation)
    assert len(made.keep) == min(n for n in range(5) if worst[n] <= tolerance)
    assert made.evidence["lost_nats"] <= tolerance


@pytest.mark.parametrize("keep", [0.5, 1.0])
def test_layers_are_kept_whole(m, keep):
    evaluation = replace(QUICK, baselines=("random", "random_in_layer", "far_mass"))
    made = plan(m, WINDOW, 0, keep, unit="layer", evaluation=evaluation)
    by_layer = [{head.kv_head for head in made.keep if head.layer == layer} for layer in range(2)]
    assert all(heads in (set(), {0, 1}) for heads in by_layer)
    assert sorted({p.n_kept for p in made.curve}) == [0, 2, 4]
    assert {p.method for p in made.curve} == {"window_gates", "random", "far_mass"}
    assert made.to_layer_types()["layer_types"].count("full_attention") == len(made.keep) // 2


def test_baselines_have_curves_at_the_same_counts(m):
    evaluation = replace(QUICK, baselines=("random", "random_in_layer", "far_mass"))
    table = plan(m, WINDOW, 1, 0.25, evaluation=evaluation).curves()
    counts = table.groupby("method").n_kept.apply(list)
    assert set(counts.index) == {"window_gates", "random", "random_in_layer", "far_mass"}
    assert all(found == [0, 1, 2, 3, 4] for found in counts)
    assert table[table.n_kept == 0].nats.nunique() == 1


def test_only_softmax_heads_are_planned():
    m = open_model(tiny("minimax"))
    made = plan(m, WINDOW, 0, 0.5, "far_mass", evaluation=QUICK)
    assert {r.layer for r in made.ranking} == {1}
    with m.apply(made):
        m.answers(needles(1))


def test_a_model_without_softmax_layers_has_no_plan():
    with pytest.raises(WorkbenchError, match="no softmax attention"):
        plan(open_model(linear_tiny("mamba2")), WINDOW, evaluation=QUICK)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (dict(window=0), "window 0, sink 0: expected a window of at least 1"),
        (dict(sink=-1), "sink -1"),
        (dict(window=True), "window is True; expected a whole number of tokens"),
        (dict(window=-3, evaluation=None), "window -3, sink 0: expected a window of at least 1"),
        (dict(keep=True), "keep is True; expected a share from 0 to 1"),
        (dict(unit="layer", keep=LossTolerance(99)), "keeps none of 2 layers; pass a larger one"),
        (dict(evaluation=replace(QUICK, context=0)), "context is 0; expected at least 1 token"),
        (dict(keep=1.2), "keep is 1.2; expected a share from 0 to 1"),
        (dict(keep=KVBytes(3)), "3 bytes hold no plan"),
        (dict(method="gates"), "unknown method 'gates'; expected one of window_gates"),
        (dict(unit="layer", keep=0.1), "keeps none of 2 layers; pass a larger one"),
        (dict(window=40), "'needles_0' has 36 tokens and a windowed head sees 40"),
        (dict(evaluation=replace(QUICK, held_out=(needles(0),))), "'needles_0' is the one that heads are ranked on"),
        (dict(evaluation=replace(QUICK, held_out=(needles(1), needles(1)))), "named needles_1, needles_1; give each"),
        (dict(evaluation=replace(QUICK, baselines=("luck",))), "unknown method 'luck'"),
        (dict(evaluation=replace(QUICK, probe=probes.make_probe("bare", random_tokens(1, 36)))), "has no answers"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_the_reason(m, arguments, told):
    given = dict(window=WINDOW, sink=0, keep=0.5, method="far_mass", unit="head", evaluation=QUICK)
    with pytest.raises(WorkbenchError, match=told):
        plan(m, **{**given, **arguments})


@pytest.mark.slow
def test_what_is_no_number_is_refused_where_types_are_not_checked():
    """The suite checks annotations; a notebook does not."""
    program = """
from workbench import KVBytes, LossTolerance, WorkbenchError, open_model, plan, window_gates, probes
from tests.families import tiny
m = open_model(tiny("llama"))
given = [dict(window=2.5), dict(window="6"), dict(sink=None), dict(keep="0.5"), dict(keep=None)]
given += [dict(keep=LossTolerance("much")), dict(keep=KVBytes("much")), dict(unit="row")]
for arguments in given:
    try:
        plan(m, **{"window": 6, **arguments})
    except WorkbenchError as error:
        print(error)
try:
    window_gates(m, probes.copy_needle(97, 16, length=40, n_sequences=2), 6, quadrature="simpson")
except WorkbenchError as error:
    print(error)
"""
    done = run_child([sys.executable, "-c", program], start=Preloaded, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = done.stdout.splitlines()
    beginnings = ["window is 2.5;", "window is '6';", "sink is None;", "keep is '0.5';", "keep is None;"]
    beginnings += [
        "a tolerance of 'much' nats",
        "a budget of 'much' bytes",
        "unit is 'row';",
        "quadrature is 'simpson';",
    ]
    assert len(told) == len(beginnings)
    assert [line for line, start in zip(told, beginnings, strict=True) if not line.startswith(start)] == []


def test_the_default_is_judged_on_needles_that_the_ranking_has_not_seen(m):
    found = default_evaluation(m, WINDOW, 2, seed=3)
    (held_out,) = found.held_out
    assert found.context == 8192
    assert not (found.probe.tokens[:, :20] == held_out.tokens[:, :20]).all()
    for probe in (found.probe, held_out):
        assert (probe.classes > WINDOW + 2).all()
    with pytest.raises(WorkbenchError, match="leave nothing far in a context of 8192 tokens; pass a smaller window"):
        default_evaluation(m, 8192, 0)


def test_an_evaluation_is_written_as_probes_are(m):
    ranked, *judged = "repeats:n=12,n_sequences=4", "repeats:n=12,seed=1", "repeats:n=12,seed=2"
    found = evaluation_on(m, WINDOW, 0, probe=ranked, held_out=judged)
    assert found.probe.name == "repeats"
    assert [p.name for p in found.held_out] == judged
    only = evaluation_on(m, WINDOW, 0, held_out=judged[:1])
    assert (only.probe.name, only.held_out[0].name) == ("far_needle_0", "repeats")
    assert evaluation_on(m, WINDOW, 0, probe=ranked).held_out[0].name == "far_needle_1"
    too_wide = evaluation_on(m, 8192, 0, probe=ranked, held_out=judged)
    assert too_wide.context == 8192
    with pytest.raises(WorkbenchError, match="unknown probe"):
        evaluation_on(m, WINDOW, 0, probe="nothing")
