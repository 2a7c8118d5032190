"""Compare: two runs, or two checkpoints of one, head by head or by rank; and all chosen runs by class over training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from dash import Dash, Input, Output, html, no_update

from workbench import emergence, figures
from workbench.app import components as p
from workbench.app.head_tables import plain_table
from workbench.app.state.view import View
from workbench.emergence.head_trajectories import short_count
from workbench.figures.style import Theme
from workbench.figures.trajectories import records
from workbench.heads import WorkbenchError
from workbench.runs import Run

MATRICES, SCATTER, MOVED, CLASSES, CLASS_TABLE, HOW, LOCK_IN, LOCK_IN_SAID = (
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
_MATRICES_PX = 760


@dataclass(frozen=True, slots=True)
class Sides:
    """The two sides of a comparison: runs, checkpoints, their scores there, and whether their heads are the same."""

    runs: tuple[Run, Run]
    at: tuple[str, str]
    shares_heads: bool

    @property
    def names(self) -> tuple[str, str]:
        """What the sides are called."""
        one, other = (f"{run.name} · {at}" for run, at in zip(self.runs, self.at, strict=True))
        return one, other


def layout(_: p.Content) -> html.Div:
    """The Compare page."""
    sides = [p.choice("a", label="Run A"), p.choice("at_a", label="at"), p.choice("b", label="Run B")]
    title = html.Section(
        [*sides, p.choice("at_b", label="at"), html.Div(id=HOW, className="muted")], className="card head-title"
    )
    pairs = html.Div(
        [
            p.card(
                "Score against score",
                "a head's score in A and in B; framed: their 95 % intervals do not overlap · click opens the head",
                p.graph(SCATTER, "clickable"),
            ),
            p.card(
                "What moved most",
                "the largest changes first",
                html.Div(id=MOVED, className="table tall"),
                table="moved",
            ),
        ],
        className="row halves",
    )
    matrices = p.card(
        "Lock-in: checkpoint × checkpoint",
        "Spearman's correlation of head scores: how early the ranking of heads is the final one. Within layers: each "
        "layer's mean taken off, so that layers that merely differ do not count",
        p.graph(MATRICES),
        table="rank_agreement",
    )
    lock = p.card(
        "Lock-in of run A against its last checkpoint",
        "as shares of what the probe's noise allows",
        [p.graph(LOCK_IN, "cursor"), html.P(id=LOCK_IN_SAID, className="muted")],
        table="lock_in",
    )
    classes = p.card(
        "By class over training: all chosen runs",
        "share of heads that have emerged by then; heads of different runs meet by class, never by index",
        [p.graph(CLASSES), html.Div(id=CLASS_TABLE, className="table")],
        table="compare",
    )
    return p.page_of("compare", [title, pairs, matrices, html.Div([lock, classes], className="row halves")])


def settle(view: View, content: p.Content) -> View:
    """Two sides that can be compared: other runs if there are several chosen, else other checkpoints of one."""
    names = [name for name in view.runs if view.probe in content.runs[name].probes_of(view.detector)]
    if not names:
        return view
    a = view.get("a") if view.get("a") in names else names[0]
    b = view.get("b") if view.get("b") in names else (names[1:2] or names)[0]
    at: list[str] = []
    for side, run in (("at_a", a), ("at_b", b)):
        there = checkpoints(content.runs[run], view)
        default = len(there) // 2 if side == "at_a" and a == b else len(there) - 1
        at.append(view.get(side) if view.get(side) in there else list(there)[default])
    return view.having({"a": a, "b": b, "at_a": at[0], "at_b": at[1]})


def checkpoints(run: Run, view: View) -> dict[str, str]:
    """The checkpoints of a run that have such scores: name -> what to call it."""
    return {at.name: str(at) for at in run.trajectories(view.detector, view.probe).checkpoints}


def sides_of(view: View, runs: p.Runs) -> Sides:
    """The sides that a view asks for.

    Raises:
        WorkbenchError: if no chosen run has such scores.
    """
    if view.get("a") not in runs or view.get("b") not in runs:
        raise WorkbenchError(
            f"no chosen run has scores of {view.detector or 'any detector'}; make some with "
            "<b>workbench scan DIR --out RUN</b>"
        )
    one, other = runs[view.get("a")], runs[view.get("b")]
    same = one is other or bool(one.weight_digests(view.detector) & other.weight_digests(view.detector))
    return Sides((one, other), (view.get("at_a"), view.get("at_b")), same)


def pairs_of(sides: Sides, view: View) -> pd.DataFrame:
    """The pairs of heads of two sides; see `emergence.paired`."""
    rows = [
        run.scores(detector=view.detector, probe=view.probe, ckpt=at)
        for run, at in zip(sides.runs, sides.at, strict=True)
    ]
    return emergence.paired(rows[0], rows[1], by="head" if sides.shares_heads else "rank")


def agreement_of(sides: Sides, view: View) -> dict[str, pd.DataFrame]:
    """The matrices to show: one across both sides of a lineage, else one of each run by itself."""
    one, other = (run.scores(detector=view.detector, probe=view.probe) for run in sides.runs)
    names = [run.name for run in sides.runs]
    if sides.shares_heads:
        title = names[0] if names[0] == names[1] else f"{names[0]} (down) and {names[1]} (across)"
        return {title: emergence.rank_agreement(one, other)}
    return {name: emergence.rank_agreement(of, of) for name, of in zip(names, (one, other), strict=True)}


def emerged(view: View, runs: p.Runs) -> dict[str, pd.DataFrame]:
    """The traced heads of all chosen runs that have such scores."""
    chosen = [runs[name] for name in view.runs if view.probe in runs[name].probes_of(view.detector)]
    return {run.name: run.emergence(view.detector, probe=view.probe) for run in chosen}


def register(app: Dash, content: p.Content) -> None:
    """The Compare page."""
    runs = content.runs
    changes = [Input(p.VIEW, "data"), Input(p.SCORES_CHANGED, "data"), Input(p.THEME, "data")]

    @app.callback(
        *(Output(p.choice_id(name), what) for name in ("a", "at_a", "b", "at_b") for what in ("data", "value")),
        Output(HOW, "children"),
        *changes[:2],
    )
    def offer_sides(kept: Any, _: Any) -> Any:
        if not shown(kept):
            return (no_update,) * 9
        view = View.from_json(kept)
        names = [name for name in view.runs if view.probe in runs[name].probes_of(view.detector)]
        if not names:
            return (no_update,) * 9
        offered: list[Any] = []
        for run, at in (("a", "at_a"), ("b", "at_b")):
            there = checkpoints(runs[view.get(run)], view)
            offered += [names, view.get(run), [{"value": k, "label": v} for k, v in there.items()], view.get(at)]
        return *offered, _how(sides_of(view, runs))

    @app.callback(Output(SCATTER, "figure"), Output(MOVED, "children"), *changes)
    def show_pairs(kept: Any, _: Any, dark: Any) -> Any:
        if not shown(kept):
            return no_update, no_update
        view, theme = View.from_json(kept), p.theme_of(dark)
        try:
            sides = sides_of(view, runs)
            pairs = pairs_of(sides, view)
            figure = figures.scores_against(pairs, detector=view.detector, names=sides.names, theme=theme)
        except WorkbenchError as error:
            return p.message(str(error), theme), []
        return figure, moved_table(pairs, view.get("a"))

    @app.callback(Output(MATRICES, "figure"), *changes)
    def show_matrices(kept: Any, _: Any, dark: Any) -> Any:
        if not shown(kept):
            return no_update
        view, theme = View.from_json(kept), p.theme_of(dark)
        try:
            sides = sides_of(view, runs)
            every = [one for run in sides.runs for one in checkpoints(run, view).items()]
            labels = {name: said.rpartition(" · ")[2].removesuffix(" tokens") for name, said in every}
            figure = figures.rank_agreement(agreement_of(sides, view), labels=labels, theme=theme)
            return figure.update_layout(meta={"width": _MATRICES_PX})
        except WorkbenchError as error:
            return p.message(str(error), theme)

    @app.callback(
        Output(LOCK_IN, "figure"),
        Output(LOCK_IN_SAID, "children"),
        Output(CLASSES, "figure"),
        Output(CLASS_TABLE, "children"),
        *changes,
    )
    def show_over_training(kept: Any, _: Any, dark: Any) -> Any:
        if not shown(kept):
            return (no_update,) * 4
        view, theme = View.from_json(kept), p.theme_of(dark)
        return *_lock_in(view, runs, theme), *_classes(view, runs, theme)


def shown(kept: Any) -> bool:
    """Whether the view is on this page."""
    return kept is not None and kept["page"] == "compare"


def _how(sides: Sides) -> str:
    if sides.shares_heads:
        return "one lineage: heads of the same name are compared"
    return "no checkpoint in common: heads are compared by rank, the strongest with the strongest, not by name"


def _lock_in(view: View, runs: p.Runs, theme: Theme) -> tuple[go.Figure, str]:
    try:
        run = sides_of(view, runs).runs[0]
        table = run.lock_in(view.detector, probe=view.probe)
        return figures.lock_in(table, x=view.x, theme=theme), emergence.lock_in_sentence(table, None)
    except WorkbenchError as error:
        return p.message(str(error), theme), ""


def _classes(view: View, runs: p.Runs, theme: Theme) -> tuple[go.Figure, Any]:
    try:
        tables = emerged(view, runs)
        figure = figures.compare(tables, detector=view.detector, theme=theme)
        return figure, class_table(emergence.compare(tables))
    except WorkbenchError as error:
        return p.message(str(error), theme), []


def moved_table(pairs: pd.DataFrame, run: str) -> html.Table:
    """The pairs that changed most; a head opens its page."""
    rows: list[list[Any]] = []
    for row in records(pairs.head(_MOVED_ROWS), *pairs.columns):
        link = html.A(row["name"], href="head", **p.extra(data_page="head", data_head=row["name"], data_run=run))
        names = [link] if row["name"] == row["name_other"] else [link, f" – {row['name_other']}"]
        kinds = row["kind"] if row["kind"] == row["kind_other"] else f"{row['kind']} – {row['kind_other']}"
        numbers = f"{row['score']:.3f}", f"{row['score_other']:.3f}", f"{row['change']:+.3f}"
        rows.append([names, kinds, *numbers, "yes" if row["apart"] else ""])
    return plain_table(("head", "kind", "A", "B", "change", "beyond noise"), rows, numbers_from=2)


def class_table(summary: pd.DataFrame) -> html.Table:
    """How many heads each run has of the class, and when they came."""
    rows: list[list[Any]] = []
    for row in records(summary, *summary.columns):
        when = ["–" if row[name] is None else short_count(row[name]) for name in ("first", "median", "q90")]
        counts = (f"{row[name]}" for name in ("n_heads", "at_first", "emerged", "transient"))
        rows.append([row["run"], *counts, f"{row['share']:.0%}", *when])
    unit = str(summary["unit"].iloc[0]) or "amount"
    titles = ("run", "heads", "there at first", "emerged", "lost again", "there at the end")
    return plain_table((*titles, f"first ({unit})", "median", "9 in 10"), rows, numbers_from=1)


PAGE = p.Page("compare", layout, register, (MATRICES, SCATTER, LOCK_IN, CLASSES), settle)
