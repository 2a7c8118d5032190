"""What an indexer selects: how much of the attention it covers, whether the answer is in it, how far it reaches.

Scores of layers that attend only to keys that an indexer selects, as those of DeepSeek sparse attention; all others
have none. A row counts if it has more tokens before it than are selected: from the others nothing is left out. All
heads of such a layer, or of a group that selects for itself, share their selection, so that only the coverage differs.

Reference:
    DeepSeek-AI 2025, DeepSeek-V3.2: an indexer selects the 2,048 keys of a query with the highest index scores. The
    coverage is what its training aims at: there the indexer learns the attention summed over heads.
"""

from __future__ import annotations

from workbench.detectors.registry import detector
from workbench.hooks import PerSequence, Recording


@detector("selection_coverage", needs={"selection_coverage"}, direction="none", by_default=False)
def selection_coverage(recording: Recording) -> PerSequence:
    """Share of the head's attention to its whole past, of the same queries and keys, that the selected keys have."""
    return recording["selection_coverage"]


@detector(
    "answer_selected", needs={"answer_selected"}, direction="none", units="share", needs_answers=True, by_default=False
)
def answer_selected(recording: Recording) -> PerSequence:
    """Share of the cells that hold the answer which the layer's indexer selects, on answer rows."""
    return recording["answer_selected"]


@detector("selection_reach", needs={"selection_distance"}, units="tokens", by_default=False)
def selection_reach(recording: Recording) -> PerSequence:
    """Mean distance of the selected keys from the row, i − j."""
    return recording["selection_distance"]


# Beside `far_mass`, whose window the flags of its rows hold.
@detector("selection_far", needs={"selection_far", "far_mass"}, units="share of keys", by_default=False)
def selection_far(recording: Recording) -> PerSequence:
    """Share of the selected keys that lie beyond the last w, S ≤ j ≤ i − w; w and S are those of `far_mass`."""
    return recording["selection_far"]


@detector("selection_overlap", needs={"selection_overlap"}, direction="none", units="share of keys", by_default=False)
def selection_overlap(recording: Recording) -> PerSequence:
    """Share of the selected keys that the selecting layer before selected too, in the same row."""
    return recording["selection_overlap"]


@detector(
    "selection_persistence", needs={"selection_persistence"}, direction="none", units="share of keys", by_default=False
)
def selection_persistence(recording: Recording) -> PerSequence:
    """Share of a row's selected keys, itself left out, that the row before selected too."""
    return recording["selection_persistence"]
