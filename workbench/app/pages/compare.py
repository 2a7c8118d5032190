"""The Compare page: two runs, or two checkpoints of one, by head or by rank; all chosen runs by class over training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from dash import Dash, Input, Output, html, no_update

from workbench import emergence, figures
from workbench.app import ids
from workbench.app.components import attributes, card, choice, graph, message, text_table, theme_of
from workbench.app.pages.overview import emerged
from workbench.app.registry import page
from workbench.app.state.content import Content, Runs
from workbench.app.state.view import View
from workbench.console import fixed
from workbench.emergence.head_trajectories import short_count
from workbench.figures.style import Theme
from workbench.figures.trajectories import records
from workbench.heads import WorkbenchError
from workbench.runs import Run

MATRICES, SCATTER, MOVED, CLASSES, CLASS_TABLE, PAIRING, LOCK_IN, LOCK_IN_SENTENCE = (
    "matrices",
    "against",
    "moved",
    "classes",
    "class-table",
    "compare-how",
    "lock-in",
    "lock-in-said",
)
_MOVED_ROWS = 40
_SAME = "A and B are the same checkpoint: choose another run or checkpoint above"
_MATRICES_PX = 760


@dataclass(frozen=True, slots=True)
class Sides:
    """The two sides of a comparison: runs, names of checkpoints, and whether heads of one name are the same head."""

    runs: tuple[Run, Run]
    checkpoints: tuple[str, str]
    shares_heads: bool

    @property
    def names(self) -> tuple[str, str]:
        """Run and checkpoint of each side."""
        a, b = (f"{run.name} · {name}" for run, name in zip(self.runs, self.checkpoints, strict=True))
        return a, b


def settle(view: View, content: Content) -> View:
    """Two sides that can be compared: two runs if several are chosen, else two checkpoints of one."""
    names = [name for name in view.runs if view.probe in content.runs[name].probes_of(view.detector)]
    if not names:
        return view
    a = view.get("a") if view.get("a") in names else names[0]
    b = view.get("b") if view.get("b") in names else (names[1:2] or names)[0]
    chosen = {"a": a, "b": b}
    for parameter, run in (("at_a", a), ("at_b", b)):
        labels = checkpoint_labels(content.runs[run], view)
        default = len(labels) // 2 if parameter == "at_a" and a == b else len(labels) - 1
        name = view.get(parameter)
        chosen[parameter] = name if name in labels else list(labels)[default]
    return view.having(chosen)


def checkpoint_labels(run: Run, view: View) -> dict[str, str]:
    """The labels of a run's checkpoints that have such scores, by name."""
    return {point.name: str(point) for point in run.trajectories(view.detector, view.probe).checkpoints}


def sides_of(view: View, runs: Runs) -> Sides:
    """The sides that a view compares.

    Raises:
        WorkbenchError: if no chosen run has such scores.
    """
    if view.get("a") not in runs or view.get("b") not in runs:
        raise WorkbenchError(
            f"no chosen run has scores of {view.detector or 'any detector'}; make some with "
            "<b>workbench scan DIR --out RUN</b>"
        )
    a, b = runs[view.get("a")], runs[view.get("b")]
    shares_heads = a is b or bool(a.weight_digests(view.detector) & b.weight_digests(view.detector))
    return Sides((a, b), (view.get("at_a"), view.get("at_b")), shares_heads)


def pairs_of(sides: Sides, view: View) -> pd.DataFrame:
    """The pairs of heads of two sides; see `emergence.paired`."""
    a, b = (
        run.scores(detector=view.detector, probe=view.probe, ckpt=name)
        for run, name in zip(sides.runs, sides.checkpoints, strict=True)
    )
    return emergence.paired(a, b, by="head" if sides.shares_heads else "rank")


def agreement_of(sides: Sides, view: View) -> dict[str, pd.DataFrame]:
    """The matrices by title: one across both sides of a lineage, else one of each run by itself."""
    a, b = (run.scores(detector=view.detector, probe=view.probe) for run in sides.runs)
    names = [run.name for run in sides.runs]
    if sides.shares_heads:
        title = names[0] if names[0] == names[1] else f"{names[0]} (down) and {names[1]} (across)"
        return {title: emergence.rank_agreement(a, b)}
    return {name: emergence.rank_agreement(scores, scores) for name, scores in zip(names, (a, b), strict=True)}


def register(app: Dash, content: Content) -> None:
    """The Compare page."""
    runs = content.runs
    changes = [Input(ids.VIEW, "data"), Input(ids.SCORES_CHANGED, "data"), Input(ids.THEME, "data")]

    @app.callback(
        *(Output(ids.parameter_id(name), key) for name in ("a", "at_a", "b", "at_b") for key in ("data", "value")),
        Output(PAIRING, "children"),
        *changes[:2],
    )
    def offer_sides(view_json: Any, _: Any) -> Any:
        view = View.of_page("compare", view_json)
        if view is None:
            return (no_update,) * 9
        names = [name for name in view.runs if view.probe in runs[name].probes_of(view.detector)]
        if not names:
            return (no_update,) * 9
        choices: list[Any] = []
        for run, checkpoint in (("a", "at_a"), ("b", "at_b")):
            labels = checkpoint_labels(runs[view.get(run)], view).items()
            choices += [names, view.get(run), [{"value": name, "label": label} for name, label in labels]]
            choices.append(view.get(checkpoint))
        return *choices, _pairing(sides_of(view, runs))

    @app.callback(Output(SCATTER, "figure"), Output(MOVED, "children"), *changes)
    def show_pairs(view_json: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("compare", view_json), theme_of(is_dark)
        if view is None:
            return no_update, no_update
        try:
            sides = sides_of(view, runs)
            if sides.names[0] == sides.names[1]:
                return message(_SAME, theme), []
            pairs = pairs_of(sides, view)
            figure = figures.scores_against(pairs, detector=view.detector, names=sides.names, theme=theme)
        except WorkbenchError as error:
            return message(str(error), theme), []
        return figure, moved_table(pairs, view.get("a"))

    @app.callback(Output(MATRICES, "figure"), *changes)
    def show_matrices(view_json: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("compare", view_json), theme_of(is_dark)
        if view is None:
            return no_update
        try:
            sides = sides_of(view, runs)
            labels = {
                name: label.rpartition(" · ")[2].removesuffix(" tokens")
                for run in sides.runs
                for name, label in checkpoint_labels(run, view).items()
            }
            figure = figures.rank_agreement(agreement_of(sides, view), labels=labels, theme=theme)
            return figure.update_layout(meta={"width": _MATRICES_PX})
        except WorkbenchError as error:
            return message(str(error), theme)

    @app.callback(
        Output(LOCK_IN, "figure"),
        Output(LOCK_IN_SENTENCE, "children"),
        Output(CLASSES, "figure"),
        Output(CLASS_TABLE, "children"),
        *changes,
    )
    def show_over_training(view_json: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("compare", view_json), theme_of(is_dark)
        if view is None:
            return (no_update,) * 4
        return *_draw_lock_in(view, runs, theme), *_draw_classes(view, runs, theme)


def _pairing(sides: Sides) -> str:
    if sides.shares_heads:
        return "one lineage: heads of the same name are compared"
    return "no checkpoint in common: heads are compared by rank, the strongest with the strongest, not by name"


def _draw_lock_in(view: View, runs: Runs, theme: Theme) -> tuple[go.Figure, str]:
    try:
        run = sides_of(view, runs).runs[0]
        table = run.lock_in(view.detector, probe=view.probe)
        return figures.lock_in(table, x=view.x, theme=theme), emergence.lock_in_sentence(table, None)
    except WorkbenchError as error:
        return message(str(error), theme), ""


def _draw_classes(view: View, runs: Runs, theme: Theme) -> tuple[go.Figure, Any]:
    try:
        tables = emerged(view, runs)
        stepless = [name for name, table in tables.items() if set(table["unit"]) == {""}]
        if len(stepless) < len(tables):
            tables = {name: table for name, table in tables.items() if name not in stepless}
        figure = figures.compare(tables, detector=view.detector, theme=theme)
        counted = class_table(emergence.compare(tables))
        if not stepless:
            return figure, counted
        return figure, [counted, html.P(f"not counted: no steps are known of {', '.join(stepless)}", className="muted")]
    except WorkbenchError as error:
        return message(str(error), theme), []


def moved_table(pairs: pd.DataFrame, run: str) -> html.Table:
    """The pairs that changed most; a click on a head opens its page."""
    rows: list[list[Any]] = []
    for row in records(pairs.head(_MOVED_ROWS), *pairs.columns):
        link = html.A(row["name"], href="head", **attributes(data_page="head", data_head=row["name"], data_run=run))
        names = [link] if row["name"] == row["name_other"] else [link, f" – {row['name_other']}"]
        kinds = row["kind"] if row["kind"] == row["kind_other"] else f"{row['kind']} – {row['kind_other']}"
        numbers = fixed(row["score"]), fixed(row["score_other"]), fixed(row["change"], sign="+")
        rows.append([names, kinds, *numbers, "yes" if row["apart"] else ""])
    return text_table(("head", "kind", "A", "B", "change", "beyond noise"), rows, numbers_from=2)


def class_table(summary: pd.DataFrame) -> html.Table:
    """How many heads of the class each run has, and when they emerged."""
    rows: list[list[Any]] = []
    for row in records(summary, *summary.columns):
        onsets = ["–" if row[name] is None else short_count(row[name]) for name in ("first", "median", "q90")]
        counts = (f"{row[name]}" for name in ("n_heads", "at_first", "emerged", "transient"))
        rows.append([row["run"], *counts, f"{row['share']:.0%}", *onsets])
    unit = str(summary["unit"].iloc[0]) or "amount"
    titles = ("run", "heads", "there at first", "emerged", "lost again", "there at the end")
    return text_table((*titles, f"first ({unit})", "median", "9 in 10"), rows, numbers_from=1)


def _moved(view: View, content: Content, _: int | None) -> pd.DataFrame:
    sides = sides_of(view, content.runs)
    return pairs_of(sides, view).assign(one=sides.names[0], other=sides.names[1])


def _rank_agreement(view: View, content: Content, _: int | None) -> pd.DataFrame:
    tables = agreement_of(sides_of(view, content.runs), view)
    return pd.concat([table.assign(of=title) for title, table in tables.items()], ignore_index=True)


def _lock_in(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return sides_of(view, content.runs).runs[0].lock_in(view.detector, probe=view.probe)


def _compare(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return emergence.compare(emerged(view, content.runs))


@page(
    "compare",
    register=register,
    controls=("runs", "detector", "probe"),
    parameters=("x", "a", "b", "at_a", "at_b"),
    settle=settle,
    exports={"moved": _moved, "rank_agreement": _rank_agreement, "lock_in": _lock_in, "compare": _compare},
)
def layout(_: Content) -> list[Any]:
    """Two runs, or two checkpoints of one run, and all chosen runs over training."""
    sides = [
        choice("a", label="Run A"),
        choice("at_a", label="at"),
        choice("b", label="Run B"),
    ]
    title = html.Section(
        [*sides, choice("at_b", label="at"), html.Div(id=PAIRING, className="muted")],
        className="card head-title",
    )
    pairs = html.Div(
        [
            card(
                "Score against score",
                "a head's score in A and in B; framed: their 95 % intervals do not overlap · click opens the head",
                graph(SCATTER, "clickable"),
            ),
            card(
                "What moved most",
                "the largest changes first",
                html.Div(id=MOVED, className="table tall"),
                table="moved",
            ),
        ],
        className="row halves",
    )
    matrices = card(
        "Lock-in: checkpoint × checkpoint",
        "Spearman's correlation of head scores: how early the ranking of heads is the final one. Within layers: each "
        "layer's mean taken off, so that layers that merely differ do not count",
        graph(MATRICES),
        table="rank_agreement",
    )
    lock = card(
        "Lock-in of run A against its last checkpoint",
        "as shares of what the probe's noise allows",
        [graph(LOCK_IN, "cursor"), html.P(id=LOCK_IN_SENTENCE, className="muted")],
        table="lock_in",
    )
    classes = card(
        "By class over training: all chosen runs",
        "share of heads that have emerged by then; heads of different runs meet by class, never by index",
        [graph(CLASSES), html.Div(id=CLASS_TABLE, className="table")],
        table="compare",
    )
    return [title, pairs, matrices, html.Div([lock, classes], className="row halves")]
