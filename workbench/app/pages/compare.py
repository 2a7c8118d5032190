"""The Compare page: two runs, or two checkpoints of one, by head or by rank; all chosen runs by class over training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from dash import Dash, Input, Output, State, html, no_update

from workbench import emergence, figures
from workbench.app import ids
from workbench.app.components import ABSENT, attributes, card, choice, graph, message, text_table, theme_of
from workbench.app.onset_tables import class_onsets, onset_table
from workbench.app.pages.overview import emerged, scored, unscored
from workbench.app.registry import page
from workbench.app.state.content import Content, Runs
from workbench.app.state.scan_states import why_empty
from workbench.app.state.view import View
from workbench.console import fixed
from workbench.figures.axis import shortened
from workbench.figures.style import Theme
from workbench.figures.trajectories import records
from workbench.heads import WorkbenchError
from workbench.runs import Run

MATRICES, SCATTER, MOVED, CLASSES, CLASS_TABLE, PAIRING, LEFT_OUT, LOCK_IN, LOCK_IN_SENTENCE = (
    "matrices",
    "against",
    "moved",
    "classes",
    "class-table",
    "compare-how",
    "compare-left-out",
    "lock-in",
    "lock-in-said",
)
SCATTER_ABOUT, MOVED_TITLE, MOVED_ABOUT, TRAINING = "against-about", "moved-title", "moved-about", "compare-training"
_SIDES = ("a", "b", "at_a", "at_b")
_MOVED_ROWS = 40
_SAME = "A and B are the same checkpoint: choose another run or checkpoint above"
_MATRIX_PX = 220  # of one of two or four
_LONGEST_LABEL = 10  # characters
_BY_RANK = "By rank: the largest differences"
# Of each way to pair heads: what the points are, and the title and the words above the table.
_TITLES: dict[str, tuple[str, str, str]] = {
    "head": (
        "a head's score in A and in B; framed: their 95 % intervals do not overlap · click opens the head",
        "What moved most",
        "the largest changes first",
    ),
    "rank": (
        "two heads of one rank, in A and in B: the points of two rankings, not of one head · click opens that of A",
        _BY_RANK,
        "A and B have other heads: no head moved, and noise is not told",
    ),
    "share": (
        "two heads at one share of their rankings, in A and in B · click opens that of A",
        "By share of the ranking: the largest differences",
        "A and B have other heads, and not as many: no head moved, and noise is not told",
    ),
}


@dataclass(frozen=True, slots=True)
class Sides:
    """The two sides of a comparison: runs, names of checkpoints, and whether heads of one name are the same head.

    `shares_heads`: they are two checkpoints of a run, or of runs that have trained weights in common.
    `shares_start`: the two runs have no more than their untrained weights in common.
    """

    runs: tuple[Run, Run]
    checkpoints: tuple[str, str]
    shares_heads: bool
    shares_start: bool = False

    @property
    def names(self) -> tuple[str, str]:
        """Run and checkpoint of each side."""
        both = zip(self.runs, self.checkpoints, strict=True)
        a, b = (name if run.name == name else f"{run.name} · {name}" for run, name in both)
        return a, b

    @property
    def has_training(self) -> bool:
        """Whether either side has more than one checkpoint."""
        return any(not run.is_one_model for run in self.runs)


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of heads of two sides, as `emergence.paired` has them, how they were made, and of how many heads."""

    table: pd.DataFrame
    by: emergence.Matching
    n_heads: tuple[int, int]


def settle(view: View, content: Content) -> View:
    """Two sides that can be compared: two runs if several are chosen, else two checkpoints of one.

    Of several runs the first two that share trained weights, a run and its branch, where there are such. What was set
    by default follows the other choices, as a run that another probe has scores of; what a reader chose stays.
    """
    view = view.having({name: "" for name in _SIDES if view.get(name) == view.get(f"default_{name}")})
    names = [name for name in view.runs if view.probe in content.runs[name].probes_of(view.detector)]
    if not names:
        return view
    weights = {name: content.runs[name].weight_digests(view.detector, trained=True) for name in names}

    def relatives(name: str) -> list[str]:
        """The other runs with heads of the same weights, such as its branches; else all others."""
        others = [other for other in names if other != name]
        return [other for other in others if weights[name] & weights[other]] or others

    parents = [name for name in names if any(weights[name] & weights[other] for other in names if other != name)]
    a = view.get("a") if view.get("a") in names else (parents or names)[0]
    b = view.get("b") if view.get("b") in names else (relatives(a) or [a])[0]
    chosen = {"a": a, "b": b}
    for parameter, run in (("at_a", a), ("at_b", b)):
        labels = checkpoint_labels(content.runs[run], view)
        default = len(labels) // 2 if parameter == "at_a" and a == b else len(labels) - 1
        name = view.get(parameter)
        chosen[parameter] = name if name in labels else list(labels)[default]
    by_default = {f"default_{name}": "" if view.get(name) == side else side for name, side in chosen.items()}
    return view.having(chosen | by_default)


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
            why_empty(runs[name] for name in view.runs if name in runs)
            or f"no chosen run has scores of {view.detector or 'any detector'}; make some with "
            "<b>workbench scan DIR --out RUN</b>"
        )
    a, b = runs[view.get("a")], runs[view.get("b")]
    shares_heads, shares_start = a is b, False
    if a is not b:
        shares_heads = bool(
            a.weight_digests(view.detector, trained=True) & b.weight_digests(view.detector, trained=True)
        )
        shares_start = not shares_heads and bool(a.weight_digests(view.detector) & b.weight_digests(view.detector))
    return Sides((a, b), (view.get("at_a"), view.get("at_b")), shares_heads, shares_start)


def pairs_of(sides: Sides, view: View) -> Pairs:
    """The pairs of heads of two sides: the same heads, or by rank, or by share of the ranking where one has more."""
    a, b = (
        run.scores(detector=view.detector, probe=view.probe, ckpt=name)
        for run, name in zip(sides.runs, sides.checkpoints, strict=True)
    )
    n_heads = len(a.dropna(subset="score")), len(b.dropna(subset="score"))
    by: emergence.Matching = "head" if sides.shares_heads else "rank" if n_heads[0] == n_heads[1] else "share"
    return Pairs(emergence.paired(a, b, by=by), by, n_heads)


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
    changes = [Input(ids.VIEW, "data"), Input(ids.SCORES_CHANGED, "data"), State(ids.THEME, "data")]

    @app.callback(
        *(Output(ids.parameter_id(name), key) for name in _SIDES for key in ("data", "value")),
        Output(TRAINING, "className"),
        Output(LEFT_OUT, "children"),
        *changes[:2],
    )
    def offer_sides(view_json: Any, _: Any) -> Any:
        view = View.of_page("compare", view_json)
        if view is None:
            return (no_update,) * 10
        names = [name for name in view.runs if view.probe in runs[name].probes_of(view.detector)]
        if not names:
            return (no_update,) * 10
        sides: list[Any] = [part for name in ("a", "b") for part in (names, view.get(name))]
        for run, checkpoint in (("a", "at_a"), ("b", "at_b")):
            labels = checkpoint_labels(runs[view.get(run)], view).items()
            sides += [[{"value": name, "label": label} for name, label in labels], view.get(checkpoint)]
        return *sides, "stack" if sides_of(view, runs).has_training else ABSENT, left_out(view, runs)

    @app.callback(
        Output(SCATTER, "figure"),
        Output(MOVED, "children"),
        Output(PAIRING, "children"),
        *(Output(name, "children") for name in (SCATTER_ABOUT, MOVED_TITLE, MOVED_ABOUT)),
        *changes,
    )
    def show_pairs(view_json: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("compare", view_json), theme_of(is_dark)
        if view is None:
            return (no_update,) * 6
        try:
            sides = sides_of(view, runs)
            if sides.names[0] == sides.names[1]:
                return message(_SAME, theme), [], "", *_TITLES["head"]
            pairs = pairs_of(sides, view)
            figure = figures.scores_against(pairs.table, detector=view.detector, names=sides.names, theme=theme)
        except WorkbenchError as error:
            return message(str(error), theme), [], "", *_TITLES["head"]
        return figure, moved_table(pairs, view.get("a")), pairing(sides, pairs), *_TITLES[pairs.by]

    @app.callback(Output(MATRICES, "figure"), *changes)
    def show_matrices(view_json: Any, _: Any, is_dark: Any) -> Any:
        view, theme = View.of_page("compare", view_json), theme_of(is_dark)
        if view is None:
            return no_update
        try:
            sides = sides_of(view, runs)
            labels = {
                name: shortened(label.rpartition(" · ")[2].removesuffix(" tokens"), _LONGEST_LABEL)
                for run in sides.runs
                for name, label in checkpoint_labels(run, view).items()
            }
            tables = agreement_of(sides, view)
            figure = figures.rank_agreement(tables, labels=labels, theme=theme)
            return figure.update_layout(meta={"width": 2 * _MATRIX_PX * len(tables)})
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


def pairing(sides: Sides, pairs: Pairs) -> str:
    """Which heads are compared with which, and why."""
    if pairs.by == "head":
        of_one = "two checkpoints of one run" if sides.runs[0] is sides.runs[1] else "two runs"
        return f"{of_one}, one lineage: heads of the same name are the same heads, and are compared"
    n, n_other = pairs.n_heads
    why = "they share their untrained weights alone, and no trained checkpoint" if sides.shares_start else ""
    why = why or "they have no checkpoint in common"
    if pairs.by == "rank":
        return (
            f"{why}: no head of A is a head of B; heads are compared by rank, the strongest with the strongest, not by "
            "name"
        )
    few, many = min(n, n_other), max(n, n_other)
    return (
        f"{why}, and A has {n} heads, B {n_other}: each of the {few} stands beside the one at the same share of the "
        f"ranking of the {many}, in the middle of every {many / few:.3g}; never by name or by rank"
    )


def left_out(view: View, runs: Runs) -> list[Any]:
    """The chosen runs that cannot be a side, and why; with links to the probes that all chosen runs were scored on."""
    reasons = unscored(view, runs)
    if not reasons:
        return []
    named = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    probes = [set(runs[name].probes_of(view.detector)) for name in view.runs if name in runs]
    links = [
        html.A(f"compare on {probe}", href="compare", **attributes(data_page="compare", data_probe=probe))
        for probe in sorted(set.intersection(*probes))
    ]
    return [f"without scores of {view.detector} on {view.probe}, so not offered: {named} ", *links]


def _draw_lock_in(view: View, runs: Runs, theme: Theme) -> tuple[go.Figure, str]:
    try:
        run = sides_of(view, runs).runs[0]
        table = run.lock_in(view.detector, probe=view.probe)
        return figures.lock_in(table, x=view.x, theme=theme), emergence.lock_in_sentence(table, None)
    except WorkbenchError as error:
        return message(str(error), theme), ""


def _draw_classes(view: View, runs: Runs, theme: Theme) -> tuple[go.Figure, Any]:
    of_training = [run for run in scored(view, runs) if run.n_scored > 1]
    if not of_training:
        why = why_empty(runs[name] for name in view.runs if name in runs)
        return message(why or f"no chosen run has scores of {view.detector} at several checkpoints", theme), []
    try:
        figure = figures.onset_shares(of_training, detector=view.detector, probe=view.probe, x=view.x, theme=theme)
    except WorkbenchError as error:
        return message(str(error), theme), []
    counted = onset_table(class_onsets(scored(view, runs), view))
    left_out = [run.name for run in scored(view, runs) if run.n_scored == 1]
    if not left_out:
        return figure, counted
    return figure, [counted, html.P(f"not counted, of one checkpoint: {', '.join(left_out)}", className="muted")]


def moved_table(pairs: Pairs, run: str) -> html.Table:
    """The pairs that differ most; a click on a head opens its page. Noise is told of the same head alone."""
    is_same = pairs.by == "head"
    rows: list[list[Any]] = []
    for row in records(pairs.table.head(_MOVED_ROWS), *pairs.table.columns):
        link = html.A(row["name"], href="head", **attributes(data_page="head", data_head=row["name"], data_run=run))
        names: list[Any] = [link] if is_same else [link, f" – {row['name_other']}"]
        kinds = row["kind"] if row["kind"] == row["kind_other"] else f"{row['kind']} – {row['kind_other']}"
        numbers = [fixed(row["score"]), fixed(row["score_other"]), fixed(row["change"], sign="+")]
        rows.append([names, kinds, *numbers, *(["yes" if row["apart"] else ""] if is_same else [])])
    titles = ("head", "kind", "A", "B", "change", "beyond noise") if is_same else ("A – B", "kind", "A", "B", "B − A")
    return text_table(titles, rows, numbers_from=2)


def _moved(view: View, content: Content, _: int | None) -> pd.DataFrame:
    sides = sides_of(view, content.runs)
    pairs = pairs_of(sides, view)
    return pairs.table.assign(one=sides.names[0], other=sides.names[1], paired_by=pairs.by)


def _rank_agreement(view: View, content: Content, _: int | None) -> pd.DataFrame:
    tables = agreement_of(sides_of(view, content.runs), view)
    return pd.concat([table.assign(of=title) for title, table in tables.items()], ignore_index=True)


def _lock_in(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return sides_of(view, content.runs).runs[0].lock_in(view.detector, probe=view.probe)


def _class_onsets(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return class_onsets(scored(view, content.runs), view)


def _compare(view: View, content: Content, _: int | None) -> pd.DataFrame:
    return emergence.compare(emerged(view, content.runs))


@page(
    "compare",
    register=register,
    controls=("runs", "detector", "probe"),
    parameters=("x", *_SIDES),
    settle=settle,
    exports={
        "moved": _moved,
        "rank_agreement": _rank_agreement,
        "lock_in": _lock_in,
        "compare": _compare,
        "class_onsets": _class_onsets,
    },
)
def layout(_: Content) -> list[Any]:
    """Two runs, or two checkpoints of one run, and all chosen runs over training."""
    sides = [
        choice("a", label="Run A"),
        choice("at_a", label="at"),
        choice("b", label="Run B"),
    ]
    title = html.Section(
        [*sides, choice("at_b", label="at"), *(html.Div(id=name, className="muted") for name in (PAIRING, LEFT_OUT))],
        className="card head-title",
    )
    pairs = html.Div(
        [
            card(
                "Score against score",
                html.Span(_TITLES["head"][0], id=SCATTER_ABOUT),
                graph(SCATTER, "clickable"),
            ),
            card(
                html.Span(_TITLES["head"][1], id=MOVED_TITLE),
                html.Span(_TITLES["head"][2], id=MOVED_ABOUT),
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
        "share of heads that have their onset by then; heads of different runs meet by class, never by index",
        [graph(CLASSES, "cursor"), html.Div(id=CLASS_TABLE, className="table")],
        table="class_onsets",
    )
    over_training = [matrices, html.Div([lock, classes], className="row halves")]
    return [title, pairs, html.Div(over_training, id=TRAINING, className="stack")]
