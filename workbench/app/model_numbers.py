"""The model-level numbers of runs: which there are, in groups, and those of one checkpoint as a table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from dash import html

from workbench.app.components import text_table
from workbench.app.state.content import Runs
from workbench.app.state.view import View
from workbench.console import fixed
from workbench.figures.trajectories import records
from workbench.runs import Run

# The parameters of an address that name the metrics of the two figures.
METRICS = ("left", "right")
# Numbers of one class, such as `recall_hops_2` and `loss_nats_depth_50`.
_CLASSED = re.compile(r"(?P<metric>.+)_(?P<by>[a-z]+)_(?P<value>\d+)")


def metric_choices(view: View, runs: Runs) -> list[str]:
    """The model-level numbers of all chosen runs, as `metric on probe`."""
    return sorted({f"{metric} on {probe}" for name in view.runs for metric, probe in runs[name].metric_names()})


def default_metrics(names: list[str], probe: str) -> tuple[str | None, str | None]:
    """The first metrics of the two figures: an accuracy and a loss, on the probe if there are such."""
    by_probe = sorted(names, key=lambda name: not name.endswith(f" on {probe}"))
    accuracy = next((name for name in by_probe if "accuracy" in name), names[0] if names else None)
    return accuracy, next((name for name in by_probe if "loss" in name), names[-1] if names else None)


def shown_metrics(view: View, runs: Runs) -> tuple[str | None, str | None]:
    """The metrics of the two figures: those that the address names as `METRICS`, where they are there, else defaults.

    Raises:
        WorkbenchError: if a chosen run cannot be read.
    """
    names = metric_choices(view, runs)
    left, right = default_metrics(names, view.probe)
    chosen = [view.get(name) for name in METRICS]
    return chosen[0] if chosen[0] in names else left, chosen[1] if chosen[1] in names else right


def with_metrics(view: View, runs: Runs) -> View:
    """The view with its choices of metrics, as far as they are there and no defaults; and with the defaults.

    The browser leaves a default out of the address; a default follows the probe.
    """
    names = metric_choices(view, runs)
    settled: dict[str, str] = {}
    for name, default in zip(METRICS, default_metrics(names, view.probe), strict=True):
        is_chosen = view.get(name) in names and view.get(name) != default
        settled |= {name: view.get(name) if is_chosen else "", f"default_{name}": default or ""}
    return view.having(settled)


def grouped(names: list[str]) -> list[dict[str, Any]]:
    """The choices in groups: each pooled number, and the numbers of each class, such as hops, in order."""
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        metric, _, probe = name.partition(" on ")
        classed = _CLASSED.fullmatch(metric)
        title = (f"{classed['metric']} by {classed['by']}" if classed else metric).replace("_", " ")
        group = f"{title} · {probe}" if classed else title
        groups.setdefault(group, []).append((int(classed["value"]) if classed else 0, name))
    return [
        {"group": group, "items": [{"value": name, "label": name.replace("_", " ")} for _, name in sorted(items)]}
        for group, items in groups.items()
    ]


def numbers_table(runs: Sequence[Run]) -> Any:
    """The model-level numbers of models of one checkpoint, pooled over distances and positions, a column a run."""
    if not runs:
        return []
    tables = [pooled_metrics(run).assign(run=run.name) for run in runs]
    joined = pd.concat(tables, ignore_index=True)
    if joined.empty:
        return html.P("no model-level numbers yet", className="muted")
    cells = {(row["metric"], row["probe"], row["run"]): _number(row) for row in records(joined, *joined.columns)}
    keys = sorted({(metric, probe) for metric, probe, _ in cells})
    names = [run.name for run in runs]
    rows = [
        [metric.replace("_", " "), probe, *(cells.get((metric, probe, n), "–") for n in names)]
        for metric, probe in keys
    ]
    return text_table(("number", "on", *names), rows, numbers_from=2)


def pooled_metrics(run: Run) -> pd.DataFrame:
    """The model-level numbers of the last checkpoint that are of all distances, positions and classes."""
    rows = run.metrics(step="last")
    classed = rows["metric"].str.fullmatch(_CLASSED.pattern)
    pooled = rows.loc[rows["distance"].isna() & rows["position"].isna() & ~classed.astype(bool)]
    return pooled.loc[:, ["metric", "probe", "value", "ci_lo", "ci_hi", "n"]]


def _number(row: Mapping[str, Any]) -> html.Span:
    interval = "" if row["ci_lo"] is None else f" [{fixed(row['ci_lo'])}, {fixed(row['ci_hi'])}]"
    value = "–" if row["value"] is None else fixed(row["value"])
    return html.Span([value, html.Span(interval, className="muted")], title=f"n = {row['n']:,}")
