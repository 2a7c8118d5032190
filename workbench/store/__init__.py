"""The run on disk: Parquet parts that appear whole or not at all, the series, the plan and the failures."""

from workbench.store.cube import Cube
from workbench.store.folder import Failure, Store
from workbench.store.parts import Part, Problem
from workbench.store.reader import Reader, plain_text
from workbench.store.schema import METRICS, SCHEMA, SCORES, Label, Origin, Table, canonical_digest
from workbench.store.timings import Timing, Timings

__all__ = [
    "METRICS",
    "SCHEMA",
    "SCORES",
    "Cube",
    "Failure",
    "Label",
    "Origin",
    "Part",
    "Problem",
    "Reader",
    "Store",
    "Table",
    "Timing",
    "Timings",
    "canonical_digest",
    "plain_text",
]
