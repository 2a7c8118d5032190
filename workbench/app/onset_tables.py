"""How many heads of each run have an onset, and when: a table, and the same on a page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from dash import html

from workbench.app.components import text_table
from workbench.app.state.view import View
from workbench.emergence import HEAD
from workbench.emergence.onset_words import MEANING, NO_ONSET, in_order_of_onset, onset_words
from workbench.emergence.thresholds import threshold_of
from workbench.figures.trajectories import records
from workbench.runs import Run


def class_onsets(runs: Sequence[Run], view: View) -> pd.DataFrame:
    """How many of each run's heads have an onset, and when: one row per run over training.

    `first`, `median`, `q90`: the checkpoints that the onset of the first head lies between, of half of those that have
    one, and of nine in ten. `lost`: heads that reached the detector's threshold and end below it.
    """
    threshold = threshold_of(view.detector).value
    rows: list[dict[str, Any]] = []
    for run in runs:
        if run.n_scored < 2:
            continue
        # a head that has a curve on each of two branches counts once, as it is on the last
        onsets = run.onsets(view.detector, probe=view.probe).drop_duplicates(list(HEAD), keep="last")
        ordered = in_order_of_onset(onsets)
        places = {"first": 0, "median": (len(ordered) - 1) // 2, "q90": -(-9 * len(ordered) // 10) - 1}
        rows.append(
            {
                "run": run.name,
                "detector": view.detector,
                "probe": view.probe,
                "n_heads": len(onsets),
                "with_onset": len(ordered),
                "at_first": sum(bool(row["at_first"]) for row in ordered),
                "lost": len(onsets.loc[(onsets["peak"] >= threshold) & (onsets["final"] < threshold)]),
                **{name: onset_words(ordered[i], unit=view.x) if ordered else NO_ONSET for name, i in places.items()},
            }
        )
    return pd.DataFrame(rows)


def onset_table(summary: pd.DataFrame) -> html.Table:
    """The rows of `class_onsets` as a table."""
    detector = summary["detector"].iloc[0]
    threshold = threshold_of(detector)
    rows = [
        [
            *(row[name] for name in ("run", "n_heads")),
            f"{row['with_onset']} ({row['with_onset'] / max(row['n_heads'], 1):.0%})",
            *(row[name] for name in ("at_first", "lost", "first", "median", "q90")),
        ]
        for row in records(summary, *summary.columns)
    ]
    lost = html.Span("lost", title=f"reached {detector} ≥ {threshold.value:g} and ends below it ({threshold.source})")
    with_onset = html.Span("with an onset", title=MEANING)
    titles = ("run", "heads", with_onset, "at the first checkpoint", lost, "first onset", "half of them", "9 in 10")
    return text_table(titles, rows, numbers_from=1)
