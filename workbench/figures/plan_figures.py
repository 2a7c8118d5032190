"""Figures of a plan: the heads it keeps, the score of each, and the loss recovered against the cache saved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.console import fixed
from workbench.figures.style import (
    COLOURS,
    ONSET,
    PALETTES,
    Scale,
    Theme,
    colour_axis,
    letter,
    line_style,
    sign_colours,
    styled,
)
from workbench.heads import KVHead, LayerInfo, WorkbenchError

_MOST_NUMBERED = 18  # columns of which each shows its score
_CORNER = 0.36  # from a square's middle to its marks, which stand clear of its score
_CURVE_COLUMNS = ["n_kept", "nats", "accuracy", "ci_lo", "ci_hi"]


@runtime_checkable
class RankedLike(Protocol):
    """The attributes of a ranked head that figures use; `workbench.store.plan_file.RankedHead` has them."""

    @property
    def head(self) -> KVHead: ...
    @property
    def score(self) -> float: ...
    @property
    def ci_lo(self) -> float: ...
    @property
    def ci_hi(self) -> float: ...


@runtime_checkable
class PlanLike(Protocol):
    """The attributes of a plan that figures use; `workbench.store.plan_file.Plan` has them."""

    @property
    def layers(self) -> Sequence[LayerInfo]: ...
    @property
    def window(self) -> int: ...
    @property
    def method(self) -> str: ...
    @property
    def units(self) -> str: ...
    @property
    def keep(self) -> Sequence[KVHead]: ...
    @property
    def linear(self) -> Mapping[KVHead, object]:
        """The heads that have linear attention, with their forms."""
        ...

    @property
    def ranking(self) -> Sequence[RankedLike]: ...
    @property
    def evidence(self) -> Mapping[str, float]: ...
    def curves(self) -> pd.DataFrame:
        """As `Plan.curves`."""
        ...


def plan(plan: PlanLike, *, theme: Theme = "light") -> go.Figure:
    """Every key/value head's score, layer by head, with a frame around those that the plan keeps.

    Where a plan gives heads linear attention, a diamond marks them and a bar those with a window. The letter of each
    layer is its kind: F full, W sliding window, C chunked, K selected keys, L linear. Grey: no head that the window
    changes.
    """
    layers = sorted({info.index: info for info in _softmax_last(plan.layers)}.values(), key=lambda info: info.index)
    row = {info.index: i for i, info in enumerate(layers)}
    width = max(r.head.kv_head for r in plan.ranking) + 1
    z = np.full((len(layers), width), np.nan)
    text = np.full(z.shape, "no head that the window changes", dtype=object)
    for rank, ranked in enumerate(plan.ranking, start=1):
        square = row[ranked.head.layer], ranked.head.kv_head
        z[square], text[square] = ranked.score, _format_ranked(plan, rank, ranked)
    figure = go.Figure()
    figure.add_heatmap(
        z=z,
        text=text,
        texttemplate="%{z:.2f}" if width <= _MOST_NUMBERED else None,
        hovertemplate="%{text}<extra></extra>",
        xgap=2 if width <= 16 else 0.5,
        ygap=2 if len(layers) <= 24 else 0.5,
        coloraxis="coloraxis",
    )
    _add_frames(figure, [(row[head.layer], head.kv_head) for head in plan.keep])
    if plan.linear:
        windowed = [r.head for r in plan.ranking if choice_name(plan, r.head) == "window"]
        for name, heads, symbol in (
            ("linear attention", plan.linear, "diamond"),
            (f"window of {plan.window} tokens", windowed, "line-ew-open"),
        ):
            _add_marks(figure, [(row[head.layer], head.kv_head) for head in heads], name, symbol, theme)
    styled(figure, theme, height=100 + int(np.clip(len(layers) * 34, 130, max(460, len(layers) * 10))))
    figure.update_layout(coloraxis=colour_axis(_scale(plan), theme), plot_bgcolor=PALETTES[theme].missing)
    figure.update_xaxes(
        title_text="key/value head", showgrid=False, ticks="", dtick=max(1, width // 8), range=[-0.5, width - 0.5]
    )
    every = max(1, len(layers) // 16)
    labels = [f"{x.index if i % every == 0 else ''} {letter(x.kind, theme)}" for i, x in enumerate(layers)]
    figure.update_yaxes(
        tickvals=list(range(len(layers))),
        ticktext=labels,
        range=[len(layers) - 0.5, -0.5],
        showgrid=False,
        ticks="",
    )
    return figure


def choice_name(plan: PlanLike, head: KVHead) -> Literal["full", "window", "linear", "sparse"]:
    """What a plan gives a head."""
    if head in plan.keep:
        return "full"
    if head in getattr(plan, "sparse", ()):
        return "sparse"
    return "linear" if head in plan.linear else "window"


def pareto(plan: PlanLike, *, theme: Theme = "light") -> go.Figure:
    """The share recovered of the loss that converting every head costs, against the cache saved: a line per method.

    One panel per held-out probe; a star marks the plan. A probe on which that costs nothing says so.
    """
    table = plan.curves()
    probes = list(dict.fromkeys(table["probe"]))
    methods = list(dict.fromkeys(table["method"]))
    figure = make_subplots(1, len(probes), subplot_titles=probes, shared_yaxes=True, horizontal_spacing=0.04)
    for panel, probe in enumerate(probes, start=1):
        for i, method in enumerate(methods):
            points = table.loc[(table["probe"] == probe) & (table["method"] == method)]
            _add_pareto_line(
                figure, points, method, panel=panel, line=line_style(i, theme), is_plans=method == plan.method
            )
        own = table.loc[
            (table["probe"] == probe) & (table["method"] == plan.method) & (table["n_kept"] == len(plan.keep))
        ]
        figure.add_scatter(
            x=own["kv_saved"],
            y=own["recovered"],
            mode="markers",
            name="the plan",
            marker={"symbol": "star", "size": 14, "color": ONSET},
            hovertemplate=f"{_in_words(plan)}<extra></extra>",
            showlegend=panel == 1,
            row=1,
            col=panel,
        )
        if own["recovered"].isna().all():
            figure.add_annotation(
                text="nothing is lost with every head converted:<br>no share to recover",
                x=0.5,
                y=0.5,
                xref="x domain" if panel == 1 else f"x{panel} domain",
                yref="y domain" if panel == 1 else f"y{panel} domain",
                showarrow=False,
            )
    styled(figure, theme, height=380)
    # The legend is above the panels' titles; a narrow card scrolls.
    figure.update_layout(legend={"y": 1.08}, margin={"t": 56}, meta={"width": 80 + 150 * len(probes)})
    figure.update_annotations(font={"size": 12, "color": PALETTES[theme].text})
    figure.update_xaxes(title_text="key/value cache saved", tickformat=".0%")
    figure.update_yaxes(tickformat=".0%")
    figure.update_yaxes(title_text="loss recovered", row=1, col=1)
    return figure


def waterfall(plan: PlanLike, *, top: int = 24, theme: Theme = "light") -> go.Figure:
    """From the loss with every head converted to the model's own, head by head in the order of the plan's ranking.

    Heads after the first `top` are one bar, and so is the error of the quadrature. Bold: heads that the plan keeps;
    italic: heads with linear attention.

    Raises:
        WorkbenchError: if the plan's scores do not sum to that loss: only those of `window_gates` do.
    """
    if not {"full", "windowed"} <= plan.evidence.keys():
        raise WorkbenchError(
            f"scores of {plan.method!r} do not sum to the loss of windowing everything; make the plan with "
            "method='window_gates'"
        )
    shown, rest = plan.ranking[:top], plan.ranking[top:]
    full, windowed = plan.evidence["full"], plan.evidence["windowed"]
    styles = {"full": "<b>{}</b>", "linear": "<i>{}</i>", "window": "{}"}
    steps = [(styles[choice_name(plan, r.head)].format(r.head), -r.score) for r in shown]
    if rest:
        steps.append((f"{len(rest)} others", -math.fsum(r.score for r in rest)))
    quadrature_error = full - windowed - math.fsum(change for _, change in steps)
    bars = [
        ("all converted" if plan.linear else "all windowed", windowed),
        *steps,
        ("quadrature", quadrature_error),
        ("full", full),
    ]
    figure = go.Figure()
    figure.add_waterfall(
        x=[name for name, _ in bars],
        y=[value for _, value in bars],
        measure=["absolute", *["relative"] * (len(steps) + 1), "total"],
        # A bar that goes down is a head with a score above zero, which has this colour in the mask.
        decreasing={"marker": {"color": sign_colours(theme)[0]}},
        increasing={"marker": {"color": sign_colours(theme)[1]}},
        totals={"marker": {"color": PALETTES[theme].muted}},
        connector={"line": {"color": PALETTES[theme].grid, "width": 1}},
        hovertemplate="%{x}: %{delta:.6~r} nats, then %{final:.6~r}<extra></extra>",
        showlegend=False,
    )
    styled(figure, theme, height=380)
    figure.update_yaxes(title_text="nats per answer", rangemode="tozero")
    figure.update_xaxes(showgrid=False, ticks="", tickangle=-60, automargin=True)
    return figure


def _softmax_last(layers: Sequence[LayerInfo]) -> list[LayerInfo]:
    """Layers in the order that makes the softmax mixer the last of a layer with two mixers, so that its kind counts."""
    return sorted(layers, key=lambda info: info.mixer == "softmax")


def _scale(plan: PlanLike) -> Scale:
    scores = [r.score for r in plan.ranking if math.isfinite(r.score)] or [0.0]
    reach, unit = max(abs(score) for score in scores) or 1.0, "" if plan.units == "none" else plan.units
    # symmetric about 0, so that a small loss does not look as large as the greatest gain
    return Scale(-reach if min(scores) < 0 else 0.0, reach, unit)


def _format_ranked(plan: PlanLike, rank: int, ranked: RankedLike) -> str:
    choices = {
        "full": "keeps the whole context",
        "window": f"sees a window of {plan.window} tokens",
        "linear": f"has linear attention: {plan.linear.get(ranked.head)}",
        "sparse": "attends to selected blocks of its past, and keeps its whole cache",
    }
    context = choices[choice_name(plan, ranked.head)]
    interval = (
        "" if math.isnan(ranked.ci_lo) else f"<br>95 % interval {fixed(ranked.ci_lo, 4)} to {fixed(ranked.ci_hi, 4)}"
    )
    score = f"{plan.method} {fixed(ranked.score, 4)} {plan.units}"
    return f"<b>{ranked.head}</b> · {context}<br>{score}{interval}<br>place {rank} of {len(plan.ranking)}"


def _add_frames(figure: go.Figure, squares: Sequence[tuple[int, int]]) -> None:
    """Frames around squares, in the gaps between them, and a legend entry."""
    for row, column in squares:
        figure.add_shape(
            type="rect",
            x0=column - 0.47,
            x1=column + 0.47,
            y0=row - 0.47,
            y1=row + 0.47,
            line={"color": ONSET, "width": 2.5},
        )
    figure.add_scatter(
        x=[None],
        y=[None],
        mode="markers",
        name=f"keeps the whole context ({len(squares)})",
        marker={"symbol": "square-open", "size": 12, "color": ONSET, "line": {"width": 2.5}},
        showlegend=True,
    )


def _add_marks(figure: go.Figure, squares: Sequence[tuple[int, int]], name: str, symbol: str, theme: Theme) -> None:
    """A small mark in the lower left corner of squares, and a legend entry."""
    figure.add_scatter(
        x=[column - _CORNER for _, column in squares],
        y=[row + _CORNER for row, _ in squares],
        mode="markers",
        name=f"{name} ({len(squares)})",
        marker={"symbol": symbol, "size": 7, "color": COLOURS[theme][2], "line": {"width": 2}},
        hoverinfo="skip",
        showlegend=True,
    )


def _in_words(plan: PlanLike) -> str:
    full = f"the plan keeps {len(plan.keep)} of {len(plan.ranking)} heads"
    return f"{full}, and gives {len(plan.linear)} linear attention" if plan.linear else full


def _add_pareto_line(
    figure: go.Figure, points: pd.DataFrame, method: str, *, panel: int, line: dict[str, Any], is_plans: bool
) -> None:
    ordered = points.sort_values("n_kept")
    figure.add_scatter(
        x=ordered["kv_saved"],
        y=ordered["recovered"],
        mode="lines+markers",
        name=method,
        legendgroup=method,
        line={**line, "width": 2.5 if is_plans else 1.5},
        marker={"size": 6 if is_plans else 4},
        error_y=_error_bars(ordered) if is_plans else None,
        customdata=[[*row[:3], _interval_in_words(*row[3:])] for row in ordered[_CURVE_COLUMNS].to_numpy().tolist()],
        hovertemplate=f"<b>{method}</b><br>%{{customdata[0]:.0f}} heads kept · %{{x:.0%}} of the cache saved<br>"
        "%{y:.1%} recovered%{customdata[3]} · %{customdata[1]:.6~r} nats · %{customdata[2]:.1%} right<extra></extra>",
        showlegend=panel == 1,
        row=1,
        col=panel,
    )


def _error_bars(points: pd.DataFrame) -> dict[str, Any] | None:
    """The 95 % interval of the share recovered; None where no point has one."""
    if not points["ci_lo"].notna().to_numpy().any():
        return None
    above, below = points["ci_hi"] - points["recovered"], points["recovered"] - points["ci_lo"]
    arrays = {"array": above.fillna(0).clip(lower=0), "arrayminus": below.fillna(0).clip(lower=0)}
    return {"type": "data", "symmetric": False, **arrays, "thickness": 1, "width": 3}


def _interval_in_words(low: float | int, high: float | int) -> str:
    return "" if math.isnan(low) else f" [{low:.1%}, {high:.1%}]"
