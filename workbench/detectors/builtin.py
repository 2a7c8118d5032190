"""The detectors that come with the workbench; importing this registers them."""

from workbench.detectors import (
    answers,
    bands,
    circuits,
    gold,
    matches,
    official,
    razor,
    shape,
    sinks,
    transformerlens,
    writing,
)

__all__ = [
    "answers",
    "bands",
    "circuits",
    "gold",
    "matches",
    "official",
    "razor",
    "shape",
    "sinks",
    "transformerlens",
    "writing",
]
