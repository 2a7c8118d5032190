"""The Plan page: which heads keep the whole context and what that costs, edited by budget or head by head."""

from __future__ import annotations

import io
import json
import math
import tempfile
import zipfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dash_mantine_components as dmc
import pandas as pd
import plotly.graph_objects as go
from dash import ClientsideFunction, Dash, Input, Output, State, dcc, html, no_update

from workbench import figures
from workbench.app import ids
from workbench.app.components import attributes, badges, card, choice, graph, message, text_table, theme_of
from workbench.app.registry import Export, page
from workbench.app.state.address import address_of
from workbench.app.state.content import Content
from workbench.app.state.plan_mask import Prediction, bytes_of, edited, mask_of, name_taken_away, predictions, text_of
from workbench.app.state.view import View
from workbench.console import fixed
from workbench.figures.style import Theme
from workbench.files.plain_json import json_text
from workbench.heads import Head, KVHead, WorkbenchError
from workbench.runs.plans_of_runs import is_plan_of, run_of_plan
from workbench.store.conversions import name_of
from workbench.store.plan_file import HeadCosts, Plan

MASK, PARETO, WATERFALL, RANKING, BUDGET, FACTS, KEPT_HEADS, ABOUT = (
    "mask",
    "pareto",
    "waterfall",
    "ranking",
    "budget",
    "plan-facts",
    "plan-kept",
    "plan-about",
)
_BUDGET = "Heads that keep the whole context"
VERDICT, SENTENCE, AWAY, IN_PLAN = "verdict", "verdict-sentence", "plan-away", "head-in-plan"
# What a head sees by its choice, and the same of many heads; another choice has its own name.
_OF_MANY = {"window": "windowed"}
_SEES = {
    "full": "keeps all",
    "window": "window {plan.window}",
    "linear": "linear attention",
    "sparse": "sparse attention",
}
# Of the query heads of a key/value head, so many are linked.
_MOST_LINKS = 4
_NO_PLAN = (
    "no plan beside these runs<br>make one with<br><b>workbench plan MODEL --window 256 --out plan.json</b><br>"
    "and open it with <b>workbench app RUN --plan plan.json</b>"
)

_NO_VERDICT = (
    "this plan has not been judged over the length of the context<br>do it with<br>"
    "<b>workbench verdict MODEL --plan plan.json --out plan.json</b>"
)


def settle(view: View, content: Content) -> View:
    """The plan of the address, or the first that is open, with its mask written as shortly as possible."""
    if not content.plans:
        return view
    if view.get("plan") not in content.plans:
        view = view.having({"plan": next(iter(content.plans)), "keep": ""})
    try:
        plan = Plan.load(content.plans[view.get("plan")])
    except WorkbenchError:
        return view
    return view.having({"keep": text_of(plan, mask_of(plan, view.get("keep")))})


def plan_of(view: View, content: Content) -> Plan:
    """The plan of a view, with the mask of the view.

    Raises:
        WorkbenchError: if there is none, or its file cannot be read any more.
    """
    path = content.plans.get(view.get("plan"))
    if path is None:
        raise WorkbenchError(_NO_PLAN)
    return edited(Plan.load(path), view.get("keep"))


def register(app: Dash, content: Content) -> None:
    """The Plan page."""
    app.clientside_callback(
        ClientsideFunction("workbench", "changeBudget"),
        Input(BUDGET, "value"),
        Input(KEPT_HEADS, "data"),
        prevent_initial_call=True,
    )

    @app.callback(
        Output(ids.parameter_id("plan"), "data"),
        Output(ids.parameter_id("plan"), "value"),
        Output(KEPT_HEADS, "data"),
        Output(BUDGET, "max"),
        Output(BUDGET, "value"),
        Output(ABOUT, "children"),
        Output(FACTS, "children"),
        Output(MASK, "figure"),
        Output(PARETO, "figure"),
        Output(WATERFALL, "figure"),
        Output(RANKING, "children"),
        Output(AWAY, "children"),
        Input(ids.VIEW, "data"),
        State(ids.THEME, "data"),
    )
    def show_plan(view_json: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("plan", view_json), theme_of(is_dark)
        if view is None:
            return (no_update,) * 12
        names = sorted(content.plans)
        try:
            plan = plan_of(view, content)
        except WorkbenchError as error:
            reason = message(str(error), theme, height=300)
            return names, view.get("plan") or None, None, 1, 0, [], html.Div(), reason, reason, reason, [], []
        order = [str(r.head) for r in plan.ranking]
        state = {"keep": [str(head) for head in plan.keep], "order": order}
        settings = names, view.get("plan"), state, len(order), len(plan.keep)
        drawn = mask_figure(plan, theme), _pareto(plan, theme), _waterfall(plan, theme)
        remarks = [html.Div(remark, className="about") for remark in plan.remarks]
        table = ranking_table(plan, run_of_plan(plan, content.plans[view.get("plan")], content.runs))
        return *settings, [*badges(about(plan)), *remarks], facts(plan), *drawn, table, away(plan, view)

    @app.callback(
        Output(SENTENCE, "children"),
        Output(VERDICT, "figure"),
        Input(ids.VIEW, "data"),
        State(ids.THEME, "data"),
    )
    def show_verdict(view_json: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("plan", view_json), theme_of(is_dark)
        if view is None:
            return no_update, no_update
        try:
            made = _judged(view, content).verdict
        except WorkbenchError as error:
            return "", message(str(error), theme, height=120)
        assert made is not None
        return [html.Div(words) for words in (made.sentence, *made.remarks)], figures.verdict(made, theme=theme)

    @app.callback(Output(IN_PLAN, "children"), Input(ids.VIEW, "data"))
    def link_from_head(view_json: Any) -> Any:
        """What the plans of the head's run give its key/value head, as links from the Head page."""
        view = View.of_page("head", view_json)
        if view is None or not view.head:
            return no_update
        return links_to_plans(view, content)


def kv_head_of(plan: Plan, head: Head) -> KVHead | None:
    """The key/value head that a query head reads; None where the plan has no such softmax head."""
    for info in plan.layers:
        if info.mixer == "softmax" and info.index == head.layer and head.head < info.n_heads:
            return KVHead(info.index, info.kv_head(head.head))
    return None


def query_heads_of(plan: Plan, head: KVHead) -> list[Head]:
    """The query heads that read a key/value head."""
    info = next(info for info in plan.layers if info.mixer == "softmax" and info.index == head.layer)
    return info.query_heads(head.kv_head)


def links_to_plans(view: View, content: Content) -> list[html.A]:
    """For each plan of the view's run, what it gives the key/value head of the view's head."""
    links: list[html.A] = []
    for name, path in content.plans.items():
        try:
            plan = Plan.load(path)
            is_of_run = is_plan_of(plan, path, content.runs[view.run])
            kv_head = kv_head_of(plan, Head.parse(view.head)) if is_of_run else None
        except (WorkbenchError, OSError):
            continue  # the Plan page says what is wrong with it, or the run's card
        if kv_head is not None and kv_head in plan.choices:
            choice = seen_by(plan, kv_head)
            to_plan = attributes(data_page="plan", data_set=json.dumps({"plan": name, "keep": ""}))
            links.append(html.A(f"{kv_head} {choice}: {name}", href="plan", className="button quiet", **to_plan))
    return links


# What a plan knows of its evidence, by the name in its file: in words, and what the number means.
EVIDENCE = {
    "completeness_error": (
        "completeness error",
        "by how much the scores of all heads together miss what it costs to window all, as a share of that",
    ),
    "full": ("loss of the model", "in nats, on the probe of the ranking"),
    "windowed": ("loss with all windowed", "in nats, on the probe of the ranking"),
    "nodes": ("nodes", "so many steps from all windowed to full at which gradients were taken"),
    "lost_nats": ("nats lost by the plan", "on the held-out probe where it does worst"),
    "recovered": (
        "share recovered",
        "of what windows cost, what the plan brings back on the held-out probe where it does worst",
    ),
    "enough": ("heads for 95 %", "the fewest of the curve that bring back 95 % on every held-out probe"),
}
# The forms in which a plan is taken away: the file, its words, and what it is for.
FORMS = {
    "plan.json": ("Plan", "this mask as a plan file, which Plan.load and every verb read"),
    "spec.json": ("JSON for engines", "what each key/value head of each layer sees, for engines that serve models"),
    "duo-attention.zip": ("DuoAttention", "its head file, and the config.json with window and sink"),
    "layer-types.json": ("layer_types", "settings of a Hugging Face config; not every family reads them"),
}


def away(plan: Plan, view: View) -> list[Any]:
    """A link for each form in which the plan can be taken away, and why the others cannot."""
    links: list[Any] = []
    for file, (title, meaning) in FORMS.items():
        try:
            file_of(plan, file)
        except WorkbenchError as error:
            links.append(html.Span(f"not as {title}: {error}", className="muted"))
            continue
        query = address_of(view).partition("?")[2]
        href = f"export/{file}?{query}&page=plan"
        name = name_taken_away(view, file)
        links.append(html.A(f"⤓ {title}", href=href, download=name, title=meaning, className="button quiet"))
    return links


def file_of(plan: Plan, file: str) -> bytes:
    """The plan in one of its forms.

    Raises:
        WorkbenchError: if the form cannot say what the plan says.
    """
    if file == "layer-types.json":
        return f"{json_text(plan.to_layer_types(), indent=1)}\n".encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if file == "duo-attention.zip":
            plan.to_duo_attention(folder / "full_attention_heads.tsv")
            return _zipped(folder)
        write = plan.to_json_spec if file == "spec.json" else plan.save
        write(folder / file)
        return (folder / file).read_bytes()


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return buffer.getvalue()


def about(plan: Plan) -> dict[str, str]:
    """The plan's model, method and evidence, as short labels with their meaning."""
    named = {name: EVIDENCE.get(name, (name, "evidence of the method")) for name in plan.evidence}
    evidence = {f"{label}: {plan.evidence[name]:.3g}": meaning for name, (label, meaning) in named.items()}
    return {
        plan.model or "model not named": "the model it was made for",
        f"window {plan.window} · sink {plan.sink}": "what the other heads see: so many last and first tokens",
        f"{plan.method} on {plan.probe}": "how heads are ranked",
        f"context {plan.context:,} tokens": "what cache sizes are counted for",
        **evidence,
    }


def facts(plan: Plan) -> list[html.Div]:
    """Cards: the heads that the mask keeps, the cache it saves, and the loss it is expected to cost."""
    needed, full = bytes_of(plan)
    counts = Counter(name_of(choice) for choice in plan.choices.values())
    others = ", ".join(f"{n} {_OF_MANY.get(name, name)}" for name, n in counts.most_common() if name != "full")
    keep = _fact("kept", str(len(plan.keep)), f" of {len(plan.ranking)} KV heads", others or "no head is converted")
    saved = _fact(
        "key/value cache saved",
        f"{plan.kv_saved:.0%}",
        f" {_size(full - needed)} of {_size(full)}",
        f"per sequence of {plan.context:,} tokens, in 16-bit numbers" + (", states in float32" if plan.linear else ""),
    )
    return [keep, saved, *(_predicted(prediction) for prediction in predictions(plan))]


def mask_figure(plan: Plan, theme: Theme) -> go.Figure:
    """The plan's grid, with an invisible point in every cell for the lasso."""
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


def seen_by(plan: Plan, head: KVHead) -> str:
    """What a plan lets a key/value head see, in words."""
    name = name_of(plan.choices[head])
    return _SEES.get(name, name).format(plan=plan)


def ranking_table(plan: Plan, run: str = "") -> html.Table:
    """Every head in the order of the ranking; a click on its name keeps or converts it.

    Where the plan had a choice, with what a window and linear attention cost the head. `run`: the run with the query
    heads that read it, each with a link; "": none is open.
    """
    rows: list[list[Any]] = []
    costs = {own.head: own for own in plan.costs}
    for rank, ranked in enumerate(plan.ranking, start=1):
        choice = seen_by(plan, ranked.head)
        name = html.Button(str(ranked.head), className="text", **attributes(data_toggle_head=str(ranked.head)))
        interval = "–" if ranked.ci_lo != ranked.ci_lo else f"{fixed(ranked.ci_lo, 4)} – {fixed(ranked.ci_hi, 4)}"
        readers = [_links_to_heads(plan, ranked.head, run)] if run else []
        row = [name, choice, *readers, rank, fixed(ranked.score, 4), interval]
        rows.append([*row, *(_costs(costs.get(ranked.head)) if costs else ())])
    unit = "" if plan.units == "none" else f" ({plan.units})"
    names = ("head", "sees", *(("read by",) if run else ()), "place", f"{plan.method}{unit}", "95 % CI")
    titles = (*names, *(("window", "linear") if costs else ()))
    return text_table(titles, rows, numbers_from=titles.index("place"))


def _links_to_heads(plan: Plan, head: KVHead, run: str) -> html.Span:
    """Links to the query heads that read a key/value head; of many the first few, and how many more there are."""
    heads = query_heads_of(plan, head)
    links: list[Any] = []
    for query_head in heads[:_MOST_LINKS]:
        to_head = attributes(data_page="head", data_head=str(query_head), data_run=run)
        links += [html.A(str(query_head), href="head", title="open on the Head page", **to_head), " "]
    more = len(heads) - _MOST_LINKS
    return html.Span([*links, *([f"and {more} more"] if more > 0 else [])])


def _costs(costs: HeadCosts | None) -> tuple[str, str]:
    """What either conversion costs a head in nats, or why it has no linear attention."""
    if costs is None:
        return "–", "–"
    linear = costs.linear_flags.replace("_", " ") or (
        "–" if costs.linear_nats != costs.linear_nats else fixed(costs.linear_nats, 4)
    )
    return fixed(costs.window_nats, 4), linear


def ranking_frame(plan: Plan) -> pd.DataFrame:
    """The ranking as a table; `keeps`: whether the mask keeps the head. Then the columns of `Plan.table`."""
    ranking = pd.DataFrame([{**asdict(r), "keeps": r.head in plan.keep} for r in plan.ranking])
    return pd.concat([ranking, plan.table().drop(columns=list(ranking.columns), errors="ignore")], axis=1)


def _pareto(plan: Plan, theme: Theme) -> go.Figure:
    if not plan.curve:
        return message("this plan has no curve: it was made without held-out probes", theme)
    return figures.pareto(plan, theme=theme)


def _waterfall(plan: Plan, theme: Theme) -> go.Figure:
    try:
        return figures.waterfall(plan, theme=theme)
    except WorkbenchError as error:
        return message(str(error), theme)


def _predicted(prediction: Prediction) -> html.Div:
    source = "from the measured curve" if prediction.is_measured else "sum of scores: measure it with workbench.plan"
    has_interval = not math.isnan(prediction.ci_lo)
    interval = f" [{prediction.ci_lo:.0%}, {prediction.ci_hi:.0%}]" if has_interval else ""
    return _fact(
        f"expected on {prediction.probe}",
        fixed(prediction.nats),
        " nats per answer",
        f"{prediction.recovered:.0%}{interval} recovered · {source}",
    )


def _fact(title: str, value: str, unit: str, about: str) -> html.Div:
    return html.Div(
        [
            html.Div(title, className="what"),
            html.Div([value, html.Span(unit, className="of")], className="value"),
            html.Div(about, className="about"),
        ],
        className="card kpi",
    )


def _size(n: int) -> str:
    for size, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if n >= size:
            return f"{n / size:.3g} {name}"
    return f"{n} bytes"


def _file(name: str) -> Export:
    """The export of the plan of a view, in one of its forms."""

    def export(view: View, content: Content, _: int | None) -> bytes:
        return file_of(plan_of(view, content), name)

    return export


def _curve(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return plan_of(view, content).curves()


def _judged(view: View, content: Content) -> Plan:
    """The plan of a view, with its verdict.

    Raises:
        WorkbenchError: if it has none, or the mask is another.
    """
    plan = plan_of(view, content)
    if plan.verdict is None and view.get("keep"):
        raise WorkbenchError("the verdict is of the plan's own heads, and the mask has others")
    if plan.verdict is None:
        raise WorkbenchError(_NO_VERDICT)
    return plan


def _lengths(view: View, content: Content, _: int | None) -> pd.DataFrame:
    made = _judged(view, content).verdict
    assert made is not None
    return made.table()


def _ranking(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return ranking_frame(plan_of(view, content))


@page(
    "plan",
    register=register,
    controls=(),
    parameters=("plan", "keep"),
    settle=settle,
    exports={**{name: _file(name) for name in FORMS}, "curve": _curve, "ranking": _ranking, "verdict": _lengths},
)
def layout(_: Content) -> list[Any]:
    """The mask of a plan, what it saves and what it costs."""
    slider = dmc.Slider(
        id=BUDGET, min=0, max=1, value=0, step=1, size="sm", updatemode="mouseup", marks=[], thumbLabel=_BUDGET
    )
    title = html.Section(
        [
            dcc.Store(id=KEPT_HEADS),
            choice("plan", label="Plan", width=220),
            html.Div([html.Label(_BUDGET), slider], className="budget"),
            html.Button("the plan's own", className="text", **attributes(data_keep="")),
            html.Div(id=ABOUT, className="badges"),
            html.Div([html.Span("Take this plan away as a file:"), html.Div(id=AWAY)], className="away"),
        ],
        className="card head-title",
        **attributes(data_file="plan.json", data_file_about="this mask, for Plan.load"),
    )
    mask = card(
        "Keep mask",
        "framed: keeps the whole context · diamond: linear attention · "
        "click turns a head, shift-click all between, drag a lasso around many",
        graph(MASK, "mask"),
    )
    pareto = card("Loss against cache", "on held-out probes; star: as many heads as now", graph(PARETO), table="curve")
    waterfall = card("From all windowed to full", "in the order of the ranking; bold: kept", graph(WATERFALL))
    ranking = card("Evidence per head", "", html.Div(id=RANKING, className="table tall"), table="ranking")
    return [
        title,
        html.Div(id=FACTS, className="kpis"),
        html.Div([mask, pareto], className="row halves"),
        card(
            "Verdict over length",
            "what the plan loses on tasks that the model can do · bands: 95 % · hollow: does not count",
            [html.Div(id=SENTENCE, className="sentence"), graph(VERDICT)],
            table="verdict",
        ),
        html.Div([waterfall, ranking], className="row halves"),
    ]
