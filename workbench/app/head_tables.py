"""Tables of one head at one checkpoint: every detector's score, its interval, its ranks and its onset."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import html

from workbench.emergence.head_trajectories import short_count
from workbench.figures.trajectories import DESCRIPTIVE, UNITS, RunLike, at_step, chosen_probes, records
from workbench.heads import Head

_COLUMNS = ("detector", "probe", "layer", "head", "score", "ci_lo", "ci_hi", "n", "n_seq")


def head_scores(run: RunLike, head: Head, step: int | str, *, probe: str) -> list[dict[str, Any]]:
    """One row per detector: the score, its ranks in the layer and in the model, and its onset.

    Scores are those on `probe`; a detector that was not scored on it is shown on another.
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
    of_head = ranked.loc[(ranked["layer"] == head.layer) & (ranked["head"] == head.head)].sort_values("detector")
    rows = records(of_head, *_COLUMNS, "rank", "of", "rank_in_layer", "of_layer")
    pairs = chosen_probes(((row["detector"], row["probe"]) for row in rows), probe)
    rows = [row for row in rows if (row["detector"], row["probe"]) in pairs]
    return [{**row, "onset": _onset(run, head, row["detector"], row["probe"])} for row in rows]


def score_table(rows: list[dict[str, Any]]) -> html.Table:
    """The rows of `head_scores` as a table, by detector."""
    titles = ("detector", "probe", "score", "95 % CI", "n", "in layer", "in model", "onset")
    about = {
        "n": "rows / sequences",
        "in layer": "rank among the heads of its layer",
        "in model": "rank among all heads",
        "onset": "half-rise onset: since when the score has stayed at or above half of its final one",
    }
    head = html.Thead(html.Tr([html.Th(title, title=about.get(title)) for title in titles]))
    return html.Table([head, html.Tbody([html.Tr(_table_row(row)) for row in rows])])


def facts_of(run: RunLike, layers: pd.DataFrame, head: Head) -> dict[str, str]:
    """The kind of a head's layer and its key/value head, as short labels with their meaning."""
    of_layer = records(layers.loc[layers["layer"] == head.layer], "kind", "window", "n_heads")
    scores = run.scores(layer=head.layer, head=head.head, step="last", columns=("kv_head",))
    facts: dict[str, str] = {}
    for layer in of_layer[:1]:
        window = "" if layer["window"] is None else f" · window {layer['window']:,}"
        facts[f"{layer['kind']} attention{window}"] = "kind of the layer, and its window in tokens"
        facts[f"{layer['n_heads']} heads in layer {head.layer}"] = "query heads of the layer"
    if not scores.empty:
        facts[f"reads KV head {int(scores.loc[:, 'kv_head'].iloc[0])}"] = "the key/value head it shares"
    return facts


def _table_row(row: dict[str, Any]) -> list[html.Td]:
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
    of_head = table.loc[(table["layer"] == head.layer) & (table["head"] == head.head)]
    if of_head.empty:
        return "–"
    onset = records(of_head.tail(1), "onset_step", "onset_tokens", "at_first")[0]
    if onset["onset_step"] is None:
        return "–"
    sign = "≤ " if onset["at_first"] else ""
    if onset["onset_tokens"] is None:
        return f"{sign}step {onset['onset_step']:,}"
    return f"{sign}{short_count(float(onset['onset_tokens']))} tokens"
