"""Figures of conversion experiments: recall by distance, heads before and after, costs per head, early choices.

`recall_by_distance` and `heads_before_and_after` draw `Results.measured` and `Results.scores` of
`workbench.experiments`; the former is in report.json, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.emergence.head_trajectories import CHECKPOINT_COLUMNS, checkpoint_of
from workbench.figures.axis import AxisUnit, draw_axis, training_axis
from workbench.figures.style import COLOURS, PALETTES, Theme, line_style, styled
from workbench.figures.trajectories import records
from workbench.heads import WorkbenchError

Measure = Literal["accuracy", "nats", "lost"]

_METHODS = ("all", "induction", "random_non_top", "least_induction", "none")
_MEASURE_TITLES = {"accuracy": "answers right", "nats": "nats per answer", "lost": "nats lost against the last choice"}
_REFERENCE_DASHES = {"all": "solid", "random": "dash", "none": "dot"}


# Of tables without a choice, one for all heads.
_CHOICE_SYMBOLS = {"full": "circle", "window": "square", "linear": "diamond", "heads": "circle-open"}


@runtime_checkable
class CostsLike(Protocol):
    """What `window_against_linear` reads of a plan; `workbench.store.plan_file.Plan` has it."""

    def table(self) -> pd.DataFrame: ...


@runtime_checkable
class EarlyLike(Protocol):
    """The attributes that `early_choices` reads; `workbench.experiments.EarlyChoices` has them."""

    @property
    def table(self) -> pd.DataFrame: ...
    @property
    def references(self) -> pd.DataFrame: ...
    @property
    def detector(self) -> str: ...
    @property
    def window(self) -> int: ...


def recall_by_distance(
    measured: pd.DataFrame,
    *,
    training: str = "no training",
    n_kept: int,
    window: int | None = None,
    methods: Sequence[str] = _METHODS,
    theme: Theme = "light",
) -> go.Figure:
    """Share of needle words copied right by distance in tokens, a line per keep-set; bars: one deviation over seeds.

    Random draws of a seed are averaged first.

    Args:
        n_kept: heads full, where a method has several numbers.
        window: drawn as a vertical line.

    Raises:
        WorkbenchError: if nothing was measured after this training.
    """
    table: Any = measured
    table = table[(table.probe == "needle") & table.label.notna() & (table.training == training)]
    if table.empty:
        trainings = ", ".join(map(repr, dict.fromkeys(measured.loc[:, "training"])))
        raise WorkbenchError(f"no needles were measured after {training!r}; there are {trainings}")
    figure = go.Figure()
    for i, method in enumerate(methods):
        rows = table[table.method == method]
        rows = rows[rows.n_kept == n_kept] if rows.n_kept.nunique() > 1 else rows
        if rows.empty:
            continue
        over_seeds = rows.groupby(["label", "seed"]).accuracy.mean().groupby("label")
        mean, deviation = over_seeds.mean(), over_seeds.std().fillna(0)
        label = f"{method}, {int(rows.n_kept.iloc[0])} full"
        figure.add_scatter(
            x=mean.index.to_numpy(),
            y=mean.to_numpy(),
            error_y={"type": "data", "array": deviation.to_numpy(), "thickness": 1, "width": 3},
            name=label,
            mode="lines+markers",
            line=line_style(i, theme),
            hovertemplate=f"{label}<br>distance %{{x}}: %{{y:.4~r}}<extra></extra>",
        )
    if window is not None:
        figure.add_vline(x=window, line={"dash": "dot", "color": PALETTES[theme].muted}, annotation_text="window")
    styled(figure, theme, height=320)
    figure.update_xaxes(title_text="distance to the needle (tokens)")
    figure.update_yaxes(title_text="copied right", range=[-0.03, 1.03])
    return figure


def heads_before_and_after(
    scores: pd.DataFrame, *, training: str, method: str, detector: str = "retrieval", theme: Theme = "light"
) -> go.Figure:
    """Every head's score before and after training, windows lifted on both sides. On the diagonal nothing moved.

    Raises:
        WorkbenchError: if there are no such scores.
    """
    table: Any = scores
    table = table[table.lifted & (table.detector == detector)]
    heads = ["seed", "layer", "head"]
    before = table[table.training == "no training"].set_index(heads).score
    after = table[(table.training == training) & (table.method == method) & (table.draw == 0)]
    after = after.set_index(heads).score
    if before.empty or after.empty:
        raise WorkbenchError(f"there are no {detector} scores of {method!r} before and after {training!r}")
    both = pd.DataFrame({"before": before, "after": after}).dropna().reset_index()
    names = [f"seed {r['seed']} L{r['layer']}H{r['head']}" for r in both.to_dict("records")]
    figure = _by_layer(both.assign(name=names), "before", "after", hover="%{x:.4~r} → %{y:.4~r}", theme=theme)
    figure.update_xaxes(title_text=f"{detector} before")
    figure.update_yaxes(title_text=f"{detector} after")
    return figure


def recovered_by_kept(
    cells: pd.DataFrame,
    part: str,
    *,
    window: int,
    length: int,
    methods: Sequence[str] | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """The share of what windowing every head loses that is back, by the number of heads kept full, a line per ranking.

    Bars: 95 % intervals over texts. `cells`: the table of a study of a published model, as its report.json has it.

    Args:
        part: of a task, as the table names it.
        window, length: in tokens.
        methods: default: all that have several numbers of heads.

    Raises:
        WorkbenchError: if nothing of this part was measured.
    """
    table: Any = cells
    table = table[(table.part == part) & (table.window == window) & (table.length == length) & (table.steps == 0)]
    table = table[table.recovered.notna() & (table.to == "window")]
    counts = table.groupby("arm", sort=False).n_kept.nunique()
    chosen = list(counts[counts > 1].index) if methods is None else [m for m in methods if m in set(table.arm)]
    if not chosen:
        raise WorkbenchError(f"no ranking was measured on {part!r} at window {window} and {length:,} tokens")
    figure = go.Figure()
    for i, method in enumerate(chosen):
        rows = table[table.arm == method].sort_values("n_kept")
        figure.add_scatter(
            x=rows.n_kept.to_numpy(),
            y=rows.recovered.to_numpy(),
            error_y=_bars(rows, "recovered"),
            name=method,
            mode="lines+markers",
            line=line_style(i, theme),
            hovertemplate=f"{method}<br>%{{x}} heads: %{{y:.4~r}}<extra></extra>",
        )
    styled(figure, theme, height=340)
    figure.update_xaxes(title_text=f"key/value heads kept full, window {window}, {part}", type="log")
    figure.update_yaxes(title_text="share of the loss that is back")
    return figure


def lost_by_length(
    cells: pd.DataFrame,
    part: str,
    *,
    window: int,
    steps: int = 0,
    arms: Sequence[str] | None = None,
    theme: Theme = "light",
) -> go.Figure:
    """Nats per answer more than the published model loses, by the length of the text, a line per arm.

    Bars: 95 % intervals over texts. `cells`: the table of a study of a published model.

    Args:
        steps: of continued pretraining.
        arms: default: those that were measured at several lengths.

    Raises:
        WorkbenchError: if no arm was measured at two lengths.
    """
    table: Any = cells
    table = table[(table.part == part) & (table.window == window) & (table.steps == steps) & (table.left_out == "")]
    groups = [(key, rows.sort_values("length")) for key, rows in table.groupby(["arm", "n_kept"], sort=False)]
    groups = [(key, rows) for key, rows in groups if rows.length.nunique() > 1 and (arms is None or key[0] in arms)]
    if not groups:
        raise WorkbenchError(f"no arm was measured on {part!r} at two lengths, window {window}, after {steps} steps")
    figure = go.Figure()
    for i, ((arm, n_kept), rows) in enumerate(groups):
        label = f"{arm}, {n_kept} full"
        figure.add_scatter(
            x=rows.length.to_numpy(),
            y=rows.lost.to_numpy(),
            error_y=_bars(rows, "lost"),
            name=label,
            mode="lines+markers",
            line=line_style(i, theme),
            hovertemplate=f"{label}<br>%{{x}} tokens: %{{y:.4~r}}<extra></extra>",
        )
    styled(figure, theme, height=340)
    figure.update_xaxes(title_text=f"tokens of the text, window {window}, {part}", type="log")
    figure.update_yaxes(title_text="nats lost per answer")
    return figure


def window_against_linear(
    costs: CostsLike | pd.DataFrame, *, tolerance: float | None = 0.01, theme: Theme = "light"
) -> go.Figure:
    """The cost of a window for each head (x) and of linear attention (y), in nats per answer, a mark for each choice.

    On the dotted line both cost the same; above it a head needs softmax more than it needs the far context. Grey lines:
    the `tolerance`, up to which a conversion is safe for a head alone. Heads without both costs are counted below.

    Args:
        costs: a plan that was made with both choices, its `table()`, or a table with `layer, kv_head, window_nats,
            linear_nats`, with `choice` if there is one, and `seed` if there are several models.

    Raises:
        WorkbenchError: if a column is missing, or no head has both costs.
    """
    table = costs if isinstance(costs, pd.DataFrame) else costs.table()
    missing = [c for c in ("layer", "kv_head", "window_nats", "linear_nats") if c not in table.columns]
    if missing:
        raise WorkbenchError(f"the table has no {', '.join(missing)}; expected those of Plan.table()")
    both = table.dropna(subset=["window_nats", "linear_nats"])
    if both.empty:
        raise WorkbenchError(
            f"none of {len(table)} heads has the cost of a window and of linear attention; make the plan with "
            "choices=('window', 'linear')"
        )
    named = both.assign(name=[_head_name(row) for row in both.to_dict("records")])
    values = named[["window_nats", "linear_nats"]].to_numpy(dtype=float)
    ends = [float(np.min(values)), float(np.max(values))]
    figure = go.Figure()
    line = {"dash": "dot", "width": 1, "color": PALETTES[theme].muted}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    for i, (choice, symbol) in enumerate(_CHOICE_SYMBOLS.items()):
        rows: Any = named[named["choice"] == choice] if "choice" in named else named[[choice == "heads"] * len(named)]
        if rows.empty:
            continue
        figure.add_scatter(
            x=rows["window_nats"].to_numpy(),
            y=rows["linear_nats"].to_numpy(),
            name=f"{choice} ({len(rows)})",
            mode="markers",
            marker={"symbol": symbol, "size": 8, "color": COLOURS[theme][i], "opacity": 0.8},
            text=rows["name"].tolist(),
            hovertemplate="%{text}<br>window %{x:.4~r}, linear %{y:.4~r}<extra></extra>",
        )
    styled(figure, theme, height=360)
    if tolerance is not None:
        safe = {"width": 1, "color": PALETTES[theme].grid}
        figure.add_vline(x=tolerance, line=safe, annotation_text="safe", annotation_font_size=10)
        figure.add_hline(y=tolerance, line=safe)
    left_out = len(table) - len(both)
    below = f"<br>{left_out} heads without a usable linear form are not shown" if left_out else ""
    figure.update_xaxes(title_text=f"cost of a window (nats per answer){below}")
    figure.update_yaxes(title_text="cost of linear attention")
    return figure


def early_choices(
    choices: EarlyLike, *, measure: Measure = "accuracy", x: AxisUnit = "tokens", theme: Theme = "light"
) -> go.Figure:
    """The final model by the checkpoint that its full heads were chosen at, a line per probe with its interval.

    Grey lines: all heads full, random choices, none full.
    """
    figure = go.Figure()
    groups = list(choices.table.groupby("probe", sort=False))
    axis = training_axis([[checkpoint_of(row) for row in records(choices.table, *CHECKPOINT_COLUMNS)]], x)
    columns = (*CHECKPOINT_COLUMNS, measure, f"{measure}_lo", f"{measure}_hi", "heads")
    for i, (probe, group) in enumerate(groups):
        rows = records(group, *columns)
        checkpoints = [checkpoint_of(row) for row in rows]
        above, below = ([_gap(row[f"{measure}_{end}"], row[measure]) for row in rows] for end in ("hi", "lo"))
        figure.add_scatter(
            x=axis.positions(checkpoints),
            y=[row[measure] for row in rows],
            error_y={"type": "data", "array": above, "arrayminus": below, "thickness": 1, "width": 2},
            name=str(probe),
            mode="lines+markers",
            line=line_style(i, theme),
            marker={"size": 5},
            text=[f"chosen at {ckpt}<br>{row['heads']}" for ckpt, row in zip(checkpoints, rows, strict=True)],
            hovertemplate=f"{probe} %{{y:.4~r}}<br>%{{text}}<extra></extra>",
        )
    for row in choices.references.to_dict("records") if len(groups) == 1 else ():
        figure.add_hline(
            y=row[measure],
            line={"color": PALETTES[theme].muted, "width": 1, "dash": _REFERENCE_DASHES[row["choice"]]},
            annotation_text=f"{row['choice']} full" if row["choice"] != "random" else "random heads full",
            annotation_font_size=10,
        )
    styled(figure, theme, height=320)
    figure.update_xaxes(title_text=f"heads chosen by {choices.detector} at this checkpoint, {axis.title}")
    figure.update_yaxes(title_text=_MEASURE_TITLES[measure])
    return draw_axis(figure, axis, theme)


def _by_layer(table: pd.DataFrame, x: str, y: str, *, hover: str, theme: Theme) -> go.Figure:
    """A point per row at two of its columns, a colour per layer, and the line on which both are the same."""
    values = table[[x, y]].to_numpy(dtype=float)
    ends = [float(np.min(values)), float(np.max(values))]
    figure = go.Figure()
    line = {"dash": "dot", "width": 1, "color": PALETTES[theme].muted}
    figure.add_scatter(x=ends, y=ends, mode="lines", line=line, showlegend=False, hoverinfo="skip")
    rows: Any = table
    for i, (layer, group) in enumerate(rows.groupby("layer")):
        figure.add_scatter(
            x=group[x].to_numpy(),
            y=group[y].to_numpy(),
            name=f"layer {layer}",
            mode="markers",
            marker={"size": 8, "color": COLOURS[theme][i % len(COLOURS[theme])], "opacity": 0.8},
            text=group["name"].tolist(),
            hovertemplate=f"%{{text}}<br>{hover}<extra></extra>",
        )
    styled(figure, theme, height=360)
    return figure


def _head_name(row: dict[str, Any]) -> str:
    head = f"L{row['layer']}KV{row['kv_head']}"
    return f"seed {row['seed']} {head}" if "seed" in row else head


def _bars(rows: Any, name: str) -> dict[str, Any]:
    """Error bars from the columns of an interval; none where it has none."""
    above, below = (rows[f"{name}_hi"] - rows[name], rows[name] - rows[f"{name}_lo"])
    ends = [side.fillna(0).clip(lower=0).to_numpy() for side in (above, below)]
    return {"type": "data", "array": ends[0], "arrayminus": ends[1], "thickness": 1, "width": 3}


def _gap(end: float | None, value: float) -> float:
    return 0.0 if end is None else abs(end - value)
