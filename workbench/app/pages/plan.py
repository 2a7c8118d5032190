"""Plan: which heads keep the whole context, at what price, edited by budget or head by head."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import dash_mantine_components as dmc
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, dcc, html, no_update

from workbench import figures
from workbench.app import components as p
from workbench.app.head_tables import plain_table
from workbench.app.state.plan_mask import Prediction, bytes_of, edited, mask_of, predictions, text_of
from workbench.app.state.view import View
from workbench.figures.style import Theme
from workbench.heads import WorkbenchError
from workbench.store.plan_file import Plan

MASK, PARETO, WATERFALL, RANKING, BUDGET, FACTS, KEPT, ABOUT = (
    "mask",
    "pareto",
    "waterfall",
    "ranking",
    "budget",
    "plan-facts",
    "plan-kept",
    "plan-about",
)
_NO_PLAN = (
    "no plan beside these runs<br>make one with<br><b>workbench plan MODEL --window 256 --out plan.json</b><br>"
    "and open it with <b>workbench app RUN --plan plan.json</b>"
)


def layout(_: p.Content) -> html.Div:
    """The Plan page."""
    slider = dmc.Slider(id=BUDGET, min=0, max=1, value=0, step=1, size="sm", updatemode="mouseup", marks=[])
    title = html.Section(
        [
            dcc.Store(id=KEPT),
            p.choice("plan", label="Plan", width=220),
            html.Div([html.Label("Heads that keep the whole context"), slider], className="budget"),
            html.Button("the plan's own", className="text", **p.extra(data_keep="")),
            html.Div(id=ABOUT, className="badges"),
        ],
        className="card head-title",
    )
    mask = p.card(
        "Keep mask",
        "framed: keeps the whole context · click turns a head, shift-click all between, drag a lasso around many",
        p.graph(MASK, "mask"),
    )
    pareto = p.card(
        "Loss against cache", "on held-out probes; star: as many heads as now", p.graph(PARETO), table="curve"
    )
    waterfall = p.card("From all windowed to full", "in the order of the ranking; bold: kept", p.graph(WATERFALL))
    ranking = p.card("Evidence per head", "", html.Div(id=RANKING, className="table tall"), table="ranking")
    return p.page_of(
        "plan",
        [
            title,
            html.Div(id=FACTS, className="kpis"),
            html.Div([mask, pareto], className="row halves"),
            html.Div([waterfall, ranking], className="row halves"),
        ],
    )


def settle(view: View, content: p.Content) -> View:
    """A plan that there is: the first, unless the address says which."""
    if not content.plans:
        return view
    if view.get("plan") not in content.plans:
        view = view.having({"plan": next(iter(content.plans)), "keep": ""})
    try:
        plan = Plan.load(content.plans[view.get("plan")])
    except WorkbenchError:
        return view
    return view.having({"keep": text_of(plan, mask_of(plan, view.get("keep")))})


def plan_of(view: View, content: p.Content) -> Plan:
    """The plan that a view is about, with its mask.

    Raises:
        WorkbenchError: if there is none, or its file cannot be read any more.
    """
    path = content.plans.get(view.get("plan"))
    if path is None:
        raise WorkbenchError(_NO_PLAN)
    return edited(Plan.load(path), view.get("keep"))


def register(app: Dash, content: p.Content) -> None:
    """The Plan page."""
    app.clientside_callback(
        ClientsideFunction("workbench", "budgeted"),
        Input(BUDGET, "value"),
        Input(KEPT, "data"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output(p.choice_id("plan"), "data"),
        Output(p.choice_id("plan"), "value"),
        Output(KEPT, "data"),
        Output(BUDGET, "max"),
        Output(BUDGET, "value"),
        Output(ABOUT, "children"),
        Output(FACTS, "children"),
        Output(MASK, "figure"),
        Output(PARETO, "figure"),
        Output(WATERFALL, "figure"),
        Output(RANKING, "children"),
        Input(p.VIEW, "data"),
        Input(p.THEME, "data"),
    )
    def show_plan(kept: Any, dark: Any) -> Any:
        if kept is None or kept["page"] != "plan":
            return (no_update,) * 11
        view, theme = View.from_json(kept), p.theme_of(dark)
        names = sorted(content.plans)
        try:
            plan = plan_of(view, content)
        except WorkbenchError as error:
            said = p.message(str(error), theme, height=300)
            return names, view.get("plan") or None, None, 1, 0, [], html.Div(), said, said, said, []
        order = [str(r.head) for r in plan.ranking]
        state = {"keep": [str(head) for head in plan.keep], "order": order}
        controls = names, view.get("plan"), state, len(order), len(plan.keep)
        drawn = mask_figure(plan, theme), _pareto(plan, theme), _waterfall(plan, theme)
        return *controls, p.badges(about(plan)), facts(plan), *drawn, ranking_table(plan)


def about(plan: Plan) -> dict[str, str]:
    """What the plan is, as short labels with their meaning."""
    evidence = {f"{name} {value:.3g}": "evidence of the method" for name, value in plan.evidence.items()}
    return {
        plan.model or "model not named": "the model it was made for",
        f"window {plan.window} · sink {plan.sink}": "what the other heads see: so many last and first tokens",
        f"{plan.method} on {plan.probe}": "how heads are ranked",
        f"context {plan.context:,} tokens": "what cache sizes are counted for",
        **evidence,
    }


def facts(plan: Plan) -> list[html.Div]:
    """What the mask keeps, saves and is expected to cost, as cards."""
    needed, in_all = bytes_of(plan)
    kept = _fact("kept", str(len(plan.keep)), f" of {len(plan.ranking)} KV heads", f"{len(plan.windowed)} windowed")
    saved = _fact(
        "key/value cache saved",
        f"{plan.kv_saved:.0%}",
        f" {_size(in_all - needed)} of {_size(in_all)}",
        f"per sequence of {plan.context:,} tokens, in 16-bit numbers",
    )
    return [kept, saved, *(_predicted(one) for one in predictions(plan))]


def mask_figure(plan: Plan, theme: Theme) -> go.Figure:
    """The plan's grid with a point in every cell, for a lasso to catch."""
    figure = figures.plan(plan, theme=theme)
    rows = {layer: i for i, layer in enumerate(sorted({info.index for info in plan.layers}))}
    heads = [r.head for r in plan.ranking]
    figure.add_scatter(
        x=[head.kv_head for head in heads],
        y=[rows[head.layer] for head in heads],
        customdata=[str(head) for head in heads],
        mode="markers",
        marker={"opacity": 0, "size": 14},
        selected={"marker": {"opacity": 0}},
        unselected={"marker": {"opacity": 0}},
        hoverinfo="skip",
        showlegend=False,
    )
    return figure.update_layout(dragmode="lasso", uirevision=None)


def ranking_table(plan: Plan) -> html.Table:
    """Every head in the order of the ranking; its name turns it."""
    rows: list[list[Any]] = []
    for place, ranked in enumerate(plan.ranking, start=1):
        kept = ranked.head in plan.keep
        name = html.Button(str(ranked.head), className="text", **p.extra(data_turn=str(ranked.head)))
        interval = "–" if ranked.ci_lo != ranked.ci_lo else f"{ranked.ci_lo:.4f} – {ranked.ci_hi:.4f}"
        rows.append([name, "keeps all" if kept else f"window {plan.window}", place, f"{ranked.score:.4f}", interval])
    unit = "" if plan.units == "none" else f" ({plan.units})"
    return plain_table(("head", "sees", "place", f"{plan.method}{unit}", "95 % CI"), rows, numbers_from=2)


def ranking_frame(plan: Plan) -> pd.DataFrame:
    """The ranking as a table, with what the mask does with each head."""
    return pd.DataFrame([{**asdict(r), "keeps": r.head in plan.keep} for r in plan.ranking])


def _pareto(plan: Plan, theme: Theme) -> go.Figure:
    if not plan.curve:
        return p.message("this plan has no curve: it was made without held-out probes", theme)
    return figures.pareto(plan, theme=theme)


def _waterfall(plan: Plan, theme: Theme) -> go.Figure:
    try:
        return figures.waterfall(plan, theme=theme)
    except WorkbenchError as error:
        return p.message(str(error), theme)


def _predicted(one: Prediction) -> html.Div:
    how = "from the measured curve" if one.is_measured else "sum of scores: measure it with workbench.plan"
    return _fact(
        f"expected on {one.probe}", f"{one.nats:.3f}", " nats per answer", f"{one.recovered:.0%} recovered · {how}"
    )


def _fact(what: str, value: str, of: str, said: str) -> html.Div:
    return html.Div(
        [
            html.Div(what, className="what"),
            html.Div([value, html.Span(of, className="of")], className="value"),
            html.Div(said, className="about"),
        ],
        className="card kpi",
    )


def _size(n: int) -> str:
    for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:
            return f"{n / size:.3g} {name}"
    return f"{n} bytes"


PAGE = p.Page("plan", layout, register, (MASK, PARETO, WATERFALL), settle)
