"""Heads with an onset are counted once each, in the unit of the page, with those that were lost."""

from __future__ import annotations

import pandas as pd

from workbench.app.onset_tables import class_onsets, onset_table
from workbench.app.state.view import View
from workbench.runs import Run


class MadeUp(Run):
    """A run with these onsets and no folder."""

    name, n_scored = "run", 4

    def __init__(self, rows):
        self.onsets = lambda *_, **__: onsets_of(rows)


class Alone(MadeUp):
    name, n_scored = "alone", 1


def onsets_of(rows):
    names = ("branch", "layer", "head", "kv_head", "kind", "onset_step", "previous_step", "at_first", "peak", "final")
    table = pd.DataFrame(rows, columns=names)
    table["onset_tokens"], table["previous_tokens"] = table["onset_step"] * 10, table["previous_step"] * 10
    numbers = ("onset_step", "previous_step", "onset_tokens", "previous_tokens")
    return table.astype(dict.fromkeys(numbers, "Int64"))


def test_a_head_on_two_branches_counts_once_and_a_lost_one_is_told():
    rows = [
        ("trunk", 0, 0, 0, "full", 64, 32, False, 0.9, 0.9),
        ("a", 0, 0, 0, "full", 128, 64, False, 0.9, 0.9),
        ("a", 0, 1, 0, "full", 0, None, True, 0.8, 0.8),
        ("a", 0, 2, 1, "full", None, None, False, 0.7, 0.05),
        ("a", 0, 3, 1, "full", None, None, False, 0.01, 0.01),
    ]
    table = class_onsets([MadeUp(rows), Alone([])], View(detector="induction", probe="repeats"))
    (row,) = table.to_dict("records")
    assert (row["n_heads"], row["with_onset"], row["at_first"], row["lost"]) == (4, 2, 1, 1)
    assert (row["first"], row["q90"]) == ("≤ 0 tokens", "640 – 1.28K tokens")
    assert "2 (50%)" in str(onset_table(table))
