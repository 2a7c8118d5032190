"""The detectors that come with the workbench; importing this registers them."""

from workbench.detectors import (
    answers,
    bands,
    circuits,
    gold,
    ladder,
    matches,
    official,
    razor,
    shape,
    sinks,
    transformerlens,
    values,
    writing,
)

__all__ = [
    "answers",
    "bands",
    "circuits",
    "gold",
    "ladder",
    "matches",
    "official",
    "razor",
    "shape",
    "sinks",
    "transformerlens",
    "values",
    "writing",
]
