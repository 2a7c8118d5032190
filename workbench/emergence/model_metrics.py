"""Model-level metrics over training: tables by position and distance, in-context learning, phase changes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float

from workbench.emergence.head_histories import is_explained
from workbench.emergence.logistic_fit import fit_logistic
from workbench.emergence.onset_intervals import logistic_interval
from workbench.emergence.probe_forms import refuse_two_forms
from workbench.emergence.score_curves import axis_of, in_order, logarithm
from workbench.heads import WorkbenchError

LATE, EARLY = 500, 50  # of Olsson et al. 2022
_SERIES = ["branch", "probe", "metric", "distance", "position"]
_CHECKPOINT = ["ckpt", "stage", "branch", "step", "step_total", "tokens"]
_95 = 2 * 1.959964


def metric_by(metrics: pd.DataFrame, metric: str, over: Literal["distance", "position"]) -> pd.DataFrame:
    """One metric as a table: checkpoints in order down, distances or positions across.

    Args:
        metrics: rows of `Run.metrics(probe=...)`, of one probe.

    Raises:
        WorkbenchError: if there is no such metric by distance or position, or of several probes.
    """
    rows = metrics.loc[(metrics["metric"] == metric) & metrics[over].notna()]
    if rows.empty:
        known = ", ".join(sorted(metrics.loc[metrics[over].notna(), "metric"].unique())) or "none"
        raise WorkbenchError(f"there is no {metric} by {over} here; by {over} there is: {known}")
    _check_one_probe(rows)
    table = rows.pivot_table(index="ckpt", columns=over, values="value", observed=True)
    return table.reindex(in_order(rows).index)


def icl_score(metrics: pd.DataFrame, *, early: int | None = None, late: int | None = None) -> pd.DataFrame:
    """In-context learning: loss at a late position minus loss at an early one, below 0 where context helps.

    Args:
        metrics: rows of `Run.metrics()` with `loss_nats` by position.
        early, late: positions; default the known ones nearest to 50 and 500, or where sequences are shorter than that
            the last one and the one nearest to a tenth of it.

    Returns:
        One row per checkpoint and probe with the columns of `Run.metrics()`, metric `icl_score`, and early, late.

    Raises:
        WorkbenchError: if no loss is known by position, or not at these.

    Reference:
        Olsson et al. 2022, In-context Learning and Induction Heads: loss of the 500th token less that of the 50th.
    """
    rows = metrics.loc[(metrics["metric"] == "loss_nats") & metrics["position"].notna()]
    refuse_two_forms(rows)
    if rows.empty:
        raise WorkbenchError("no loss is known by position; scan a probe of natural text, e.g. text:path=FILE")
    positions = np.sort(rows.loc[:, "position"].unique().astype(np.int64))
    last = min(LATE, int(positions[-1]))
    late = _nearest(positions, last) if late is None else late
    early = _nearest(positions, late // (LATE // EARLY)) if early is None else early
    if not {early, late} <= set(positions.tolist()) or early >= late:
        raise WorkbenchError(
            f"early is {early}, late is {late}; expected positions of {positions[0]} to {positions[-1]}, early first"
        )
    keys = ["probe", *(name for name in _CHECKPOINT if name in rows.columns)]
    at_early, at_late = (rows.loc[rows["position"] == token].drop_duplicates(keys) for token in (early, late))
    both = at_late.merge(at_early, on=keys, suffixes=("", "_early"))
    spread = np.hypot(both["ci_hi"] - both["ci_lo"], both["ci_hi_early"] - both["ci_lo_early"]) / 2
    changed = {name: both[name] - both[f"{name}_early"] for name in ("value", "half_a", "half_b")}
    both = both.assign(metric="icl_score", **changed, early=early, late=late, position=pd.NA)
    both = both.assign(ci_lo=both["value"] - spread, ci_hi=both["value"] + spread)
    return both.loc[:, [*rows.columns, "early", "late"]]


def phase_changes(metrics: pd.DataFrame, *, seed: int = 0) -> pd.DataFrame:
    """The phase change of each metric: a logistic in ln tokens, where it explains more than a straight line.

    A loss falls throughout training; a phase change is a fall or rise that no line in ln tokens explains. Step 0 is
    left out, because ln 0 is on no line.

    Args:
        metrics: rows of `Run.metrics()`, also with those of `icl_score`.

    Returns:
        One row per branch, probe, metric, distance and position: n (checkpoints), unit ("tokens" or "step");
        is_change: whether the logistic explains more than it would of a line with noise;
        amplitude (negative for a fall), n50 with its 95 % interval n50_lo, n50_hi, and n10, n90 between which 10 to
        90 % of the change lie: NaN where it is no change; r2 and line_r2 of the two fits.
    """
    refuse_two_forms(metrics)
    checkpoints = in_order(metrics)
    amount, unit = axis_of(checkpoints)
    grouped = metrics.groupby(_SERIES, dropna=False, observed=True, sort=True)
    row, column = grouped.ngroup().to_numpy(), checkpoints.index.get_indexer(metrics.loc[:, "ckpt"])
    shape = grouped.ngroups, max(len(checkpoints), 1)
    value, se = np.full(shape, np.nan), np.full(shape, np.nan)
    value[row, column] = metrics.loc[:, "value"].to_numpy(np.float64)
    se[row, column] = (metrics.loc[:, "ci_hi"] - metrics.loc[:, "ci_lo"]).to_numpy(np.float64) / _95
    series = grouped.size().index.to_frame(index=False)
    begun = ~(amount == 0)
    changes = _changes(logarithm(amount[begun]), value[:, begun], se[:, begun], seed)
    return series.assign(n=(~np.isnan(value)).sum(1), unit=unit, **changes)


def align(heads: pd.DataFrame, change: pd.Series) -> pd.DataFrame:
    """Each head's onset relative to one phase change: before, during or after it.

    Args:
        heads: the table of `trace`; heads without an n50 are left out.
        change: a row of `phase_changes` that is a change.

    Returns:
        The rows of heads with relation ("before": the onset's whole interval lies before n10; "after": behind n90;
        else "during") and lead, ln(n50 of the head / n50 of the change): negative where the head is first.

    Raises:
        WorkbenchError: if the row is no change, or counts in another unit.
    """
    phase: dict[str, Any] = change.to_dict()
    if not phase["is_change"]:
        raise WorkbenchError(f"{phase['metric']} on {phase['probe']} has no phase change here to align heads with")
    onsets = heads.loc[heads["n50"].notna()]
    if len(onsets) and set(onsets.loc[:, "unit"]) != {phase["unit"]}:
        raise WorkbenchError(f"onsets are in {onsets['unit'].iloc[0]}, the change in {phase['unit']}; use one series")
    is_before, is_after = onsets["n50_hi"] < phase["n10"], onsets["n50_lo"] > phase["n90"]
    relation = np.select([is_before, is_after], ["before", "after"], "during")
    return onsets.assign(relation=relation, lead=np.log(onsets["n50"] / phase["n50"])).reset_index(drop=True)


def _changes(x: Any, value: Float[np.ndarray, "series ckpts"], se: Any, seed: int) -> dict[str, Any]:
    n = (~np.isnan(value)).sum(1)
    fit = fit_logistic(x, value, falling=True)
    line_sse, flat_sse = _line(x, value)
    is_change = is_explained(line_sse, fit.sse, n)
    low, high = np.full((2, len(value)), np.nan)
    rows = np.flatnonzero(is_change)
    low[rows], high[rows] = logistic_interval(x, value[rows], fit.rows(rows), se[rows], seed=seed)
    reach = np.log(9) * fit.width

    def known(values: Any) -> Any:
        return np.where(is_change, values, np.nan)

    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return {
            "is_change": is_change,
            "amplitude": known(fit.amplitude),
            "n50": known(np.exp(fit.middle)),
            "n50_lo": np.exp(low),
            "n50_hi": np.exp(high),
            "n10": known(np.exp(fit.middle - reach)),
            "n90": known(np.exp(fit.middle + reach)),
            "r2": np.where(flat_sse > 0, 1 - fit.sse / flat_sse, np.nan),
            "line_r2": np.where(flat_sse > 0, 1 - line_sse / flat_sse, np.nan),
        }


def _line(x: Any, value: Any) -> tuple[Any, Any]:
    """Squared residuals of the best straight line and of the mean, of each row."""
    has_value = ~np.isnan(value)
    n = np.maximum(has_value.sum(1), 1)
    y = np.where(has_value, value - (np.nansum(value, axis=1) / n)[:, None], 0)
    centred = np.where(has_value, x - (np.where(has_value, x, 0).sum(1) / n)[:, None], 0)
    flat, spread = (y**2).sum(1), (centred**2).sum(1)
    explained = np.divide((centred * y).sum(1) ** 2, spread, out=np.zeros_like(spread), where=spread > 0)
    return np.maximum(flat - explained, 0), flat


def _nearest(positions: Any, position: int) -> int:
    return int(positions[np.abs(positions - position).argmin()])


def _check_one_probe(rows: pd.DataFrame) -> None:
    refuse_two_forms(rows)
    probes = sorted(map(str, rows.loc[:, "probe"].unique()))
    if len(probes) > 1:
        raise WorkbenchError(f"these are metrics of {', '.join(probes)}: pass one of them as probe=")
