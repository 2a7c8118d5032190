"""Figures of plans show the plan's own numbers: frames where heads are kept, curves by cache, bars that add up."""

from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest

from tests.planning.plans import FULL, LINEAR, layers_of, plan_of
from workbench import KVHead, LinearAttention, WorkbenchError, figures
from workbench.store.plan_file import CurvePoint, RankedHead

SCORES = {KVHead(0, 1): 2.0, KVHead(2, 0): 1.0, KVHead(0, 0): 0.25, KVHead(2, 1): -0.5}


@pytest.fixture
def plan():
    made = plan_of(layers_of(FULL, LINEAR, FULL), [(0, 1), (2, 0)], method="window_gates")
    ranking = tuple(RankedHead(*head, score, score - 0.1, score + 0.1) for head, score in SCORES.items())
    curve = tuple(
        CurvePoint(method, probe, n, 3.5 - n, n / 4, n / 4, 0.8 - n / 5)
        for probe in ("near", "far")
        for method in ("window_gates", "random")
        for n in range(5)
    )
    evidence = {"full": 0.7, "windowed": 3.5, "completeness_error": 0.02}
    return replace(made, ranking=ranking, curve=curve, evidence=evidence)


def test_every_score_stands_in_its_cell_and_kept_heads_are_framed(plan):
    figure = figures.plan(plan)
    (grid,) = (trace for trace in figure.data if isinstance(trace, go.Heatmap))
    for (layer, h), score in SCORES.items():
        assert grid.z[layer][h] == score
        assert f"L{layer}KV{h}" in grid.text[layer][h]
        assert ("keeps the whole context" in grid.text[layer][h]) == (KVHead(layer, h) in plan.keep)
    assert np.isnan(grid.z[1]).all()
    frames = {(round((s.y0 + s.y1) / 2), round((s.x0 + s.x1) / 2)) for s in figure.layout.shapes}
    assert frames == {(0, 1), (2, 0)}
    assert "place 1 of 4" in grid.text[0][1]
    assert "1.9000 to 2.1000" in grid.text[0][1]
    assert [kind for text in figure.layout.yaxis.ticktext for kind in "FL" if f"<b>{kind}</b>" in text] == [
        "F",
        "L",
        "F",
    ]
    assert (figure.layout.coloraxis.cmin, figure.layout.coloraxis.cmax) == (-2.0, 2.0)  # white is nothing


def test_pareto_has_a_line_per_method_and_a_star_for_the_plan_in_every_probes_panel(plan):
    figure = figures.pareto(plan)
    lines = [trace for trace in figure.data if trace.mode == "lines+markers"]
    assert [line.name for line in lines] == ["window_gates", "random"] * 2
    assert list(lines[0].x) == pytest.approx([0.8, 0.6, 0.4, 0.2, 0])
    assert list(lines[0].y) == [0, 0.25, 0.5, 0.75, 1]
    assert [a.text for a in figure.layout.annotations] == ["near", "far"]
    stars = [trace for trace in figure.data if trace.name == "the plan"]
    assert [(star.x[0], star.y[0]) for star in stars] == [(pytest.approx(0.4), 0.5)] * 2
    assert [trace.showlegend for trace in stars] == [True, False]


@pytest.mark.parametrize("top", [2, 24])
def test_the_bars_of_a_waterfall_lead_from_all_windowed_to_full(plan, top):
    (bars,) = figures.waterfall(plan, top=top).data
    assert bars.measure[0] == "absolute"
    assert bars.measure[-1] == "total"
    assert sum(bars.y[:-1]) == pytest.approx(0.7)
    assert bars.y[0] == 3.5
    assert bars.x[1] == "<b>L0KV1</b>"
    assert bars.y[1] == -2
    assert ("2 others" in bars.x) == (top == 2)
    assert bars.y[list(bars.x).index("quadrature")] == pytest.approx(0.7 - 3.5 + 2.75)


def test_windows_and_linear_heads_have_marks_of_their_own(plan):
    form = LinearAttention("elu", 2.0, 0.5)
    mixed = replace(plan, conversions={KVHead(0, 0): form})
    figure = figures.plan(mixed)
    marks = {trace.name: list(zip(trace.y, trace.x, strict=True)) for trace in figure.data if trace.name}
    assert marks["linear attention (1)"] == [(pytest.approx(0.36), pytest.approx(-0.36))]
    assert marks["window of 16 tokens (1)"] == [(pytest.approx(2.36), pytest.approx(0.64))]
    (grid,) = (trace for trace in figure.data if isinstance(trace, go.Heatmap))
    assert "has linear attention: LinearAttention(features='elu'" in grid.text[0][0]
    assert "sees a window of 16 tokens" in grid.text[2][1]
    (bars,) = figures.waterfall(mixed).data
    assert bars.x[:4] == ("all converted", "<b>L0KV1</b>", "<b>L2KV0</b>", "<i>L0KV0</i>")
    star = next(trace for trace in figures.pareto(mixed).data if trace.name == "the plan")
    assert "keeps 2 of 4 heads, and gives 1 linear attention" in star.hovertemplate
    assert not any("linear" in (trace.name or "") for trace in figures.plan(plan).data)


def test_a_probe_on_which_nothing_is_lost_says_so_in_its_panel(plan):
    nothing = tuple(replace(p, recovered=float("nan")) if p.probe == "far" else p for p in plan.curve)
    texts = [a.text for a in figures.pareto(replace(plan, curve=nothing)).layout.annotations]
    assert sum("nothing is lost with every head converted" in text for text in texts) == 1


def test_scores_that_do_not_add_up_have_no_waterfall(plan):
    with pytest.raises(WorkbenchError, match=r"'far_mass' do not sum.*method='window_gates'"):
        figures.waterfall(replace(plan, method="far_mass", evidence={"lost_nats": 0.1}))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_figure_of_a_plan_can_be_drawn_on_either_ground(plan, theme):
    for draw in (figures.plan, figures.pareto, figures.waterfall):
        figure = draw(plan, theme=theme)
        assert len(figure.to_json()) > 100
        assert figure.layout.paper_bgcolor == "rgba(0,0,0,0)"


def test_plans_without_intervals_or_negative_scores_are_drawn_too(plan):
    bare = [replace(r, score=abs(r.score), ci_lo=float("nan"), ci_hi=float("nan")) for r in plan.ranking]
    figure = figures.plan(replace(plan, ranking=tuple(bare), keep=()))
    assert figure.layout.coloraxis.cmin == 0
    assert len(figure.layout.shapes) == 0
    assert "interval" not in figure.data[0].text[0][1]
