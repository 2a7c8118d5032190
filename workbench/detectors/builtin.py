"""The detectors that come with the workbench; importing this registers them."""

from workbench.detectors import (
    answers,
    bands,
    circuits,
    decoded,
    gold,
    matches,
    razor,
    shape,
    sinks,
    transformerlens,
)

__all__ = [
    "answers",
    "bands",
    "circuits",
    "decoded",
    "gold",
    "matches",
    "razor",
    "shape",
    "sinks",
    "transformerlens",
]
