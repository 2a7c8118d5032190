"""The run on disk: Parquet parts that appear whole or not at all, the series, the planned units and the failures."""

from workbench.store.map_parts import MAPS_SCHEMA, MapArrays, MapLabel, QueriesKeys
from workbench.store.maps import HeadMap, Maps, PatternFile, Tile
from workbench.store.part_files import Part, Problem, read_beside, read_rows
from workbench.store.part_format import (
    KEY_SCHEMA,
    METRICS,
    SCHEMA,
    SCORES,
    VARYING,
    Label,
    Origin,
    Table,
    canonical_digest,
)
from workbench.store.run_description import JobDescription, RunDescription, Versions
from workbench.store.run_folder import Failure, Store
from workbench.store.run_reader import Reader, plain_text
from workbench.store.scan_requests import (
    DEFAULT_PROBE,
    Current,
    Request,
    WrittenProbe,
    accounts_stamp,
    read_current,
    read_requests,
    request_of,
)
from workbench.store.score_cube import Cube
from workbench.store.score_settings import DEFAULT_DTYPE, OWN_DTYPE, SETTING_NAMES, Settings, in_words, parse_settings
from workbench.store.timings import Timing, Timings

__all__ = [
    "DEFAULT_DTYPE",
    "DEFAULT_PROBE",
    "KEY_SCHEMA",
    "MAPS_SCHEMA",
    "METRICS",
    "OWN_DTYPE",
    "SCHEMA",
    "SCORES",
    "SETTING_NAMES",
    "VARYING",
    "Cube",
    "Current",
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
    "Request",
    "RunDescription",
    "Settings",
    "Store",
    "Table",
    "Tile",
    "Timing",
    "Timings",
    "Versions",
    "WrittenProbe",
    "accounts_stamp",
    "canonical_digest",
    "in_words",
    "parse_settings",
    "plain_text",
    "read_beside",
    "read_current",
    "read_requests",
    "read_rows",
    "request_of",
]
