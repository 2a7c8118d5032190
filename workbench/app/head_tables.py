"""Tables of one head at one checkpoint: every detector's score, its interval, its ranks and its onset."""

from __future__ import annotations

from typing import Any

import pandas as pd
from dash import html

from workbench.emergence.onset_words import COLUMNS as ONSET_COLUMNS
from workbench.emergence.onset_words import MEANING, NO_ONSET, onset_words
from workbench.figures.trajectories import DESCRIPTIVE, UNITS, RunLike, at_step, chosen_probes, detector_label, records
from workbench.heads import Head

_COLUMNS = ("detector", "probe", "layer", "head", "score", "ci_lo", "ci_hi", "n", "n_seq")


def head_scores(run: RunLike, head: Head, step: int | str, *, probe: str, onsets: bool = True) -> list[dict[str, Any]]:
    """One row per detector: the score, its ranks in the layer and in the model, and with `onsets` its onset.

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
    return [{**row, "onset": _onset(run, head, row["detector"], row["probe"])} for row in rows] if onsets else rows


def every_head(run: RunLike, step: int | str, *, probe: str) -> pd.DataFrame:
    """One row per query head at a checkpoint: head, layer, number, kind, kv_head, and a score of each detector.

    A column has the name of its detector, and of its probe where that is not `probe`. `NAME ci_lo` and `NAME ci_hi`
    hold the 95 % interval. NaN: no score.
    """
    scores = run.scores(**at_step(step), columns=(*_COLUMNS, "kind", "kv_head"))
    scores = scores.loc[scores["head"].notna()]
    pairs = chosen_probes(set(zip(scores["detector"], scores["probe"], strict=True)), probe)
    keys = ["layer", "head", "kind", "kv_head"]
    table = scores.loc[:, keys].drop_duplicates().sort_values(keys).set_index(keys)
    for detector, on in sorted(pairs):
        rows = scores.loc[(scores["detector"] == detector) & (scores["probe"] == on)].set_index(keys)
        label = detector_label(detector, on, pairs, probe)
        table = table.join(rows.loc[:, ["score", "ci_lo", "ci_hi"]].set_axis([label, *_interval_of(label)], axis=1))
    table = table.reset_index()
    names = [
        str(Head(int(row["layer"]), int(row["head"]))) for row in table.loc[:, ["layer", "head"]].to_dict("records")
    ]
    table = table.rename(columns={"head": "number"})
    table.insert(0, "head", names)
    return table


def score_columns(table: pd.DataFrame) -> list[str]:
    """The columns of `every_head` that hold scores."""
    return [name for name in table.columns if _interval_of(str(name))[0] in table.columns]


def _interval_of(label: str) -> tuple[str, str]:
    return f"{label} ci_lo", f"{label} ci_hi"


def score_table(rows: list[dict[str, Any]]) -> html.Table:
    """The rows of `head_scores` as a table, by detector."""
    titles = ["detector", "probe", "score", "95 % CI", "n", "in layer", "in model"]
    titles += ["onset"] if any("onset" in row for row in rows) else []
    about = {
        "n": "rows / sequences",
        "in layer": "rank among the heads of its layer",
        "in model": "rank among all heads",
        "onset": MEANING,
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
        *([html.Td(row["onset"], className="number")] if "onset" in row else []),
    ]


def _onset(run: RunLike, head: Head, detector: str, probe: str) -> str:
    if detector in DESCRIPTIVE:
        return NO_ONSET
    of_head = run.onsets(detector, probe=probe, head=head)
    return NO_ONSET if of_head.empty else onset_words(records(of_head.tail(1), *ONSET_COLUMNS)[0])
