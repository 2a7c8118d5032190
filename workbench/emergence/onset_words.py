"""The onset in words: one definition and one form, wherever an onset is shown."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.emergence.head_trajectories import short_count

MEANING = (
    "onset: the first checkpoint from which a head's score stays at half of its final one or above. Two numbers are "
    "the checkpoint before it and that one, between which the rise lies; ≤: it is there at the first checkpoint. Heads "
    "that end below 0.1 have none"
)
NO_ONSET = "–"
# The columns of `onsets` that `onset_words` reads.
COLUMNS = ("onset_step", "onset_tokens", "previous_step", "previous_tokens", "at_first")


def onset_words(row: dict[str, Any], *, unit: str = "tokens") -> str:
    """The checkpoints that a head's rise lies between, or the first, at or before which it lies.

    Args:
        row: of `onsets`, with None for what is missing.
        unit: "tokens", or "step"; steps also where tokens are not known.
    """
    if row["onset_step"] is None and row["onset_tokens"] is None:
        return NO_ONSET
    if unit == "tokens" and row["onset_tokens"] is not None:
        onset, before = row["onset_tokens"], row["previous_tokens"]
        if row["at_first"] or before is None:
            return f"≤ {short_count(float(onset))} tokens"
        return f"{short_count(float(before))} – {short_count(float(onset))} tokens"
    onset, before = row["onset_step"], row["previous_step"]
    if onset is None:
        return NO_ONSET
    if row["at_first"] or before is None:
        return f"≤ step {int(onset):,}"
    return f"steps {int(before):,} – {int(onset):,}"


def in_order_of_onset(onsets: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of `onsets` that have an onset, the earliest first."""
    known = onsets.loc[onsets["onset_step"].notna() | onsets["onset_tokens"].notna()]
    by = "onset_tokens" if known["onset_tokens"].notna().all() else "onset_step"
    ordered = known.sort_values([by, "at_first"], ascending=[True, False], kind="stable").loc[:, list(COLUMNS)]
    return ordered.astype(object).where(ordered.notna(), None).to_dict("records")


def first_onset_words(onsets: pd.DataFrame, *, unit: str = "tokens") -> str:
    """The earliest onset of these heads in words; "" where none has one."""
    ordered = in_order_of_onset(onsets)
    return onset_words(ordered[0], unit=unit) if ordered else ""
