"""The run on disk: Parquet parts that appear whole or not at all, the series, the planned units and the failures."""

from workbench.store.map_parts import MAPS_SCHEMA, MapArrays, MapLabel, QueriesKeys
from workbench.store.maps import HeadMap, Maps, PatternFile, Tile
from workbench.store.part_files import Part, Problem, read_rows
from workbench.store.part_format import METRICS, SCHEMA, SCORES, VARYING, Label, Origin, Table, canonical_digest
from workbench.store.run_description import JobDescription, RunDescription, Versions
from workbench.store.run_folder import Failure, Store
from workbench.store.run_reader import Reader, plain_text
from workbench.store.score_cube import Cube
from workbench.store.timings import Timing, Timings

__all__ = [
    "MAPS_SCHEMA",
    "METRICS",
    "SCHEMA",
    "SCORES",
    "VARYING",
    "Cube",
    "Failure",
    "HeadMap",
    "JobDescription",
    "Label",
    "MapArrays",
    "MapLabel",
    "Maps",
    "Origin",
    "Part",
    "PatternFile",
    "Problem",
    "QueriesKeys",
    "Reader",
    "RunDescription",
    "Store",
    "Table",
    "Tile",
    "Timing",
    "Timings",
    "Versions",
    "canonical_digest",
    "plain_text",
    "read_rows",
]
