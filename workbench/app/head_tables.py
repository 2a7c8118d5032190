"""The numbers of one head at one checkpoint: every detector's score, its interval, and its rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from dash import html

from workbench.emergence.head_trajectories import short_count
from workbench.figures.trajectories import DESCRIPTIVE, UNITS, RunLike, at_step, chosen_probes, records
from workbench.heads import Head

_COLUMNS = ("detector", "probe", "layer", "head", "score", "ci_lo", "ci_hi", "n", "n_seq")


def head_scores(run: RunLike, head: Head, step: int | str, *, probe: str) -> list[dict[str, Any]]:
    """One row per detector: the score, its ranks in the layer and in the model, and its onset.

    On this probe, or on another where a detector was not scored on it.
    """
    scores = run.scores(**at_step(step), columns=_COLUMNS)
    scores = scores.loc[scores["score"].notna()]
    by_probe = scores.groupby(["detector", "probe"])["score"]
    by_layer = scores.groupby(["detector", "probe", "layer"])["score"]
    ranked = scores.assign(
        rank=by_probe.rank(ascending=False, method="min").astype("Int64"),
        of=by_probe.transform("size"),
        rank_in_layer=by_layer.rank(ascending=False, method="min").astype("Int64"),
        of_layer=by_layer.transform("size"),
    )
    mine = ranked.loc[(ranked["layer"] == head.layer) & (ranked["head"] == head.head)].sort_values("detector")
    rows = records(mine, *_COLUMNS, "rank", "of", "rank_in_layer", "of_layer")
    shown = chosen_probes(((row["detector"], row["probe"]) for row in rows), probe)
    rows = [row for row in rows if (row["detector"], row["probe"]) in shown]
    return [{**row, "onset": _onset(run, head, row["detector"], row["probe"])} for row in rows]


def score_table(rows: list[dict[str, Any]]) -> html.Table:
    """The rows as a table, the detectors by name."""
    titles = ("detector", "probe", "score", "95 % CI", "n", "in layer", "in model", "onset")
    about = {
        "n": "rows / sequences",
        "in layer": "rank among the heads of its layer",
        "in model": "rank among all heads",
        "onset": "half-rise onset: since when the score has stayed at or above half of its final one",
    }
    head = html.Thead(html.Tr([html.Th(title, title=about.get(title)) for title in titles]))
    return html.Table([head, html.Tbody([html.Tr(_cells(row)) for row in rows])])


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[Any]], *, numbers_from: int) -> html.Table:
    """A table of text; columns from `numbers_from` on are set as numbers."""
    head = html.Thead(html.Tr([html.Th(t, className="number" * (i >= numbers_from)) for i, t in enumerate(titles)]))
    body = [[html.Td(x, className="number" * (i >= numbers_from)) for i, x in enumerate(row)] for row in rows]
    return html.Table([head, html.Tbody([html.Tr(row) for row in body])], className="plain")


def _cells(row: dict[str, Any]) -> list[html.Td]:
    unit = UNITS.get(row["detector"], "")
    digits = 1 if unit == "tokens" else 3
    interval = "–" if row["ci_lo"] is None else f"{row['ci_lo']:.{digits}f} – {row['ci_hi']:.{digits}f}"
    return [
        html.Td(row["detector"]),
        html.Td(row["probe"], className="muted"),
        html.Td(f"{row['score']:.{digits}f} {unit}".strip(), className="number strong"),
        html.Td(interval, className="number"),
        html.Td(f"{row['n']:,} / {row['n_seq']}", className="number"),
        html.Td(f"{row['rank_in_layer']} of {row['of_layer']}", className="number"),
        html.Td(f"{row['rank']} of {row['of']}", className="number"),
        html.Td(row["onset"], className="number"),
    ]


def _onset(run: RunLike, head: Head, detector: str, probe: str) -> str:
    if detector in DESCRIPTIVE:
        return "–"
    table = run.onsets(detector, probe=probe)
    mine = table.loc[(table["layer"] == head.layer) & (table["head"] == head.head)]
    found: list[dict[str, Any]] = [] if mine.empty else records(mine.tail(1), "onset_step", "onset_tokens", "at_first")
    if not found or found[0]["onset_step"] is None:
        return "–"
    sign = "≤ " if found[0]["at_first"] else ""
    if found[0]["onset_tokens"] is None:
        return f"{sign}step {found[0]['onset_step']:,}"
    return f"{sign}{short_count(float(found[0]['onset_tokens']))} tokens"


def facts_of(run: RunLike, layers: pd.DataFrame, head: Head) -> dict[str, str]:
    """What is known about a head's place, as short labels with their meaning."""
    layer = records(layers.loc[layers["layer"] == head.layer], "kind", "window", "n_heads")
    scores = run.scores(layer=head.layer, head=head.head, step="last", columns=("kv_head",))
    facts: dict[str, str] = {}
    for one in layer[:1]:
        window = "" if one["window"] is None else f" · window {one['window']:,}"
        facts[f"{one['kind']} attention{window}"] = "kind of the layer, and its window in tokens"
        facts[f"{one['n_heads']} heads in layer {head.layer}"] = "query heads of the layer"
    if not scores.empty:
        facts[f"reads KV head {int(scores.loc[:, 'kv_head'].iloc[0])}"] = "the key/value head it shares"
    return facts
