"""The verdict on a plan over length: the score of each arm against the length of the context, one panel per task."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures.style import COLOURS, DASHES, PALETTES, Theme, faint, styled
from workbench.heads import WorkbenchError

_COLUMNS = 3
# Arm, its words, and the number of its colour.
_ARMS = (("full", "the model itself", 0), ("planned", "under the plan", 2), ("windowed", "every head windowed", 1))
_TITLES = {"right": "right answers", "nats": "nats per answer"}


@runtime_checkable
class VerdictLike(Protocol):
    """The attributes of a verdict that figures use; `workbench.store.length_verdict.LengthVerdict` has them."""

    @property
    def sentence(self) -> str: ...
    def table(self) -> pd.DataFrame:
        """As `LengthVerdict.table`."""
        ...


@runtime_checkable
class JudgedPlan(Protocol):
    """A plan that holds its verdict, if it was judged."""

    @property
    def verdict(self) -> VerdictLike | None: ...


def verdict(verdict: VerdictLike | JudgedPlan, *, theme: Theme = "light") -> go.Figure:
    """The share of right answers, or the loss on natural text, of three arms against the length, with 95 % bands.

    One panel per task. Hollow: the task does not count there, and the hover says why.

    Raises:
        WorkbenchError: for a plan without a verdict.
    """
    judged = verdict if isinstance(verdict, VerdictLike) else verdict.verdict
    if judged is None:
        raise WorkbenchError("the plan has no verdict; make one with workbench.verdict (workbench verdict MODEL)")
    table = judged.table()
    tasks = list(dict.fromkeys(table["task"]))
    n_columns = min(_COLUMNS, len(tasks))
    n_rows = -(-len(tasks) // n_columns)
    figure = make_subplots(n_rows, n_columns, subplot_titles=tasks, horizontal_spacing=0.08, vertical_spacing=0.16)
    for i, task in enumerate(tasks):
        of_task = table.loc[table["task"] == task]
        row, column = i // n_columns + 1, i % n_columns + 1
        measured = of_task.loc[of_task["n_questions"] > 0]
        measure = str((measured if len(measured) else of_task)["measure"].iloc[0])
        for arm, words, colour in _ARMS:
            points = measured.loc[measured["arm"] == arm].sort_values("length")
            _add_arm(
                figure, points, measure, {"name": words, "arm": arm, "colour": colour, "theme": theme}, (row, column)
            )
        lengths = sorted(of_task["length"].unique())
        figure.update_xaxes(
            type="log",
            tickvals=lengths,
            ticktext=[f"{n:,}" for n in lengths],
            title_text="tokens" if i + n_columns >= len(tasks) else None,
            row=row,
            col=column,
        )
        figure.update_yaxes(title_text=_TITLES[measure], row=row, col=column)
        if measure == "right":
            figure.update_yaxes(range=[-0.03, 1.03], tickformat=".0%", row=row, col=column)
    styled(figure, theme, height=90 + 270 * n_rows)
    figure.update_layout(legend={"y": 1 + 0.12 / n_rows}, margin={"t": 64}, meta={"width": 80 + 220 * n_columns})
    figure.update_annotations(font={"size": 12, "color": PALETTES[theme].text})
    for arm, words, colour in _ARMS:
        figure.add_scatter(
            x=[None],
            y=[None],
            mode="lines+markers",
            name=words,
            legendgroup=arm,
            line=_line(colour, theme),
            showlegend=True,
        )
    return figure


def _add_arm(
    figure: go.Figure, points: pd.DataFrame, measure: str, arm: dict[str, Any], place: tuple[int, int]
) -> None:
    """A line with a band; without an interval the band has no width."""
    if not len(points):
        return
    row, column = place
    shared = {"legendgroup": arm["arm"], "showlegend": False, "row": row, "col": column}
    low, high = (points[f"{measure}_{end}"].fillna(points[measure]) for end in ("lo", "hi"))
    figure.add_scatter(
        x=[*points["length"], *reversed(points["length"].tolist())],
        y=[*high, *reversed(low.tolist())],
        fill="toself",
        fillcolor=faint(COLOURS[arm["theme"]][arm["colour"]], 0.15),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        **shared,
    )
    is_out = points["left_out"] != ""
    figure.add_scatter(
        x=points["length"],
        y=points[measure],
        mode="lines+markers",
        name=arm["name"],
        line=_line(arm["colour"], arm["theme"]),
        marker={"size": 8, "symbol": ["circle-open" if out else "circle" for out in is_out]},
        text=[_hover(arm["name"], row) for row in points.to_dict("records")],
        hovertemplate="%{text}<extra></extra>",
        **shared,
    )


def _line(colour: int, theme: Theme) -> dict[str, Any]:
    return {"color": COLOURS[theme][colour], "dash": DASHES[colour], "width": 2}


def _hover(name: str, row: dict[str, Any]) -> str:
    lost = f"<br>loses {row['lost']:.3f} nats per answer" if row["arm"] != "full" else ""
    count = f"{row['n_questions']} questions in {row['n_texts']} texts"
    out = f"<br>does not count: {row['left_out']}" if row["left_out"] else ""
    beyond = "<br>beyond the model's context" if row["beyond_context"] else ""
    scores = f"{row['right']:.0%} right · {row['nats']:.3f} nats{lost}"
    return f"<b>{name}</b> · {row['length']:,} tokens<br>{scores}<br>{count}{out}{beyond}"
