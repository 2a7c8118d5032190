"""The columns of the two tables, the label of a part, rows as an Arrow table, and canonical digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa

from workbench.heads import Metric, Row
from workbench.store.score_settings import SETTING_NAMES, Settings

# Since 2, rows have their settings in columns of their own.
SCHEMA = 2
# Of what determines a unit's numbers: as long as it stays, a unit of an older schema is the same unit.
KEY_SCHEMA = 1
Table = Literal["scores", "metrics"]

_TEXT, _INT, _FLOAT = pa.string(), pa.int64(), pa.float64()

SCORES = pa.schema(
    [
        pa.field("run", _TEXT, nullable=False),
        pa.field("ckpt", _TEXT, nullable=False),
        pa.field("weights", _TEXT, nullable=False),
        pa.field("config", _TEXT, nullable=False),
        ("stage", _TEXT),
        ("branch", _TEXT),
        ("step", _INT),
        ("step_total", _INT),
        ("tokens", _INT),
        pa.field("layer", _INT, nullable=False),
        ("head", _INT),
        pa.field("kv_head", _INT, nullable=False),
        pa.field("kind", _TEXT, nullable=False),
        ("window", _INT),
        pa.field("detector", _TEXT, nullable=False),
        pa.field("version", _INT, nullable=False),
        pa.field("probe", _TEXT, nullable=False),
        pa.field("probe_digest", _TEXT, nullable=False),
        pa.field("seq_len", _INT, nullable=False),
        pa.field("score", _FLOAT, nullable=False),
        pa.field("half_a", _FLOAT, nullable=False),
        pa.field("half_b", _FLOAT, nullable=False),
        pa.field("sd_seq", _FLOAT, nullable=False),
        pa.field("n_seq", _INT, nullable=False),
        pa.field("n", _INT, nullable=False),
        pa.field("ci_lo", _FLOAT, nullable=False),
        pa.field("ci_hi", _FLOAT, nullable=False),
        pa.field("flags", _TEXT, nullable=False),
        pa.field("unit", _TEXT, nullable=False),
        ("dtype", _TEXT),
        ("rows", _INT),
        ("seed", _INT),
        ("far_window", _INT),
        ("far_sink", _INT),
    ]
)

METRICS = pa.schema(
    [
        pa.field("weights", _TEXT, nullable=False),
        ("stage", _TEXT),
        ("branch", _TEXT),
        ("step", _INT),
        ("tokens", _INT),
        pa.field("probe", _TEXT, nullable=False),
        pa.field("metric", _TEXT, nullable=False),
        ("distance", _INT),
        ("position", _INT),
        pa.field("value", _FLOAT, nullable=False),
        pa.field("half_a", _FLOAT, nullable=False),
        pa.field("half_b", _FLOAT, nullable=False),
        pa.field("n", _INT, nullable=False),
        pa.field("ci_lo", _FLOAT, nullable=False),
        pa.field("ci_hi", _FLOAT, nullable=False),
        ("dtype", _TEXT),
        ("rows", _INT),
        ("seed", _INT),
    ]
)

# The key of the part's digest in the file's metadata.
DIGEST = b"wb.digest"
COLUMNS: dict[str, pa.Schema] = {"scores": SCORES, "metrics": METRICS}
VARYING: dict[str, tuple[str, ...]] = {
    "scores": tuple(f.name for f in fields(Row) if f.name not in {"detector", "version", "probe"}),
    "metrics": tuple(f.name for f in fields(Metric) if f.name != "probe"),
}


def columns_of(table: Table, schema: int) -> pa.Schema:
    """The columns that the parts of a schema have; those of 1 have no settings."""
    every = COLUMNS[table]
    return every if schema > 1 else pa.schema([field for field in every if field.name not in SETTING_NAMES])


@dataclass(frozen=True, slots=True)
class Origin:
    """The checkpoint that all rows of a part come from.

    `weights` and `config` are digests, at least 8 hex characters. `step` counts within the stage,
    `step_total` and `tokens` over the whole lineage; None where it is not known.
    """

    run: str
    ckpt: str
    weights: str
    config: str
    stage: str | None
    branch: str | None
    step: int | None
    step_total: int | None
    tokens: int | None

    @property
    def folder(self) -> str:
        """The folder of this checkpoint's parts; sorts by step."""
        step = "-" * 10 if self.step_total is None else f"{self.step_total:010d}"
        return f"s{step}-{self.weights[:8]}"

    @property
    def state(self) -> tuple[str | int | None, ...]:
        """What changes when other weights, another configuration or another place go by the checkpoint's name."""
        return self.weights, self.config, self.stage, self.branch, self.step

    def as_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


# Fields of a label that older files lack.
_LATER = ("determined", "first_schema")


@dataclass(frozen=True, slots=True)
class Label:
    """What a part is, as its file's metadata describes it; `detector` is "" for metrics that belong to none.

    `determined`: JSON of what determines the numbers, of which `unit` is the digest; "" where the writer gave none.
    `first_schema`: the schema that the numbers were first written in; 0: this one.
    """

    schema: int
    table: Table
    unit: str
    rows: int
    origin: Origin
    probe: str
    probe_digest: str
    seq_len: int
    detector: str
    version: int
    determined: str = ""
    first_schema: int = 0

    @property
    def ckpt(self) -> str:
        """The checkpoint's name."""
        return self.origin.ckpt

    @property
    def identity(self) -> tuple[object, ...]:
        """What is equal in two parts whose rows may be duplicates of each other."""
        return (*self.origin.state, self.table, self.detector, self.version, self.probe_digest, self.settings)

    @property
    def settings(self) -> Settings:
        """The settings of the scan that wrote the part."""
        return _settings(self.determined)

    def shared(self) -> dict[str, Any]:
        """The values that all rows of the part share."""
        names = ("unit", "probe", "probe_digest", "seq_len", "detector", "version")
        shared = self.origin.as_dict() | {name: getattr(self, name) for name in names} | self.settings.as_dict()
        # Schema 1 had one key for float32 on a CPU and for a checkpoint's own dtype on CUDA.
        is_unknown = (self.first_schema or self.schema) == 1 and '"dtype":null' in self.determined
        return {**shared, "dtype": None} if is_unknown else shared

    def metadata(self) -> dict[bytes, bytes]:
        """The label as the `wb.*` metadata of a file."""
        text = {f.name: str(getattr(self, f.name)) for f in fields(self)}
        text |= {"ckpt": self.ckpt, "origin": json.dumps(self.origin.as_dict())}
        return {f"wb.{name}".encode(): value.encode() for name, value in text.items()}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> Label:
        """Read the `wb.*` metadata.

        Raises:
            KeyError, TypeError, ValueError: if some of it is missing or not of its type.
        """
        named = {f.name: f"wb.{f.name}".encode() for f in fields(cls)}
        text = {name: metadata[key].decode() for name, key in named.items() if name not in _LATER}
        table = text["table"]
        if table != "scores" and table != "metrics":
            raise ValueError(f"table {table!r}")
        return cls(
            schema=int(text["schema"]),
            table=table,
            unit=text["unit"],
            rows=int(text["rows"]),
            origin=Origin(**json.loads(text["origin"])),
            probe=text["probe"],
            probe_digest=text["probe_digest"],
            seq_len=int(text["seq_len"]),
            detector=text["detector"],
            version=int(text["version"]),
            determined=metadata.get(named["determined"], b"").decode(),
            first_schema=int(metadata.get(named["first_schema"], b"0")),
        )


@lru_cache(maxsize=2**15)
def _settings(determined: str) -> Settings:
    return Settings.of(json.loads(determined) if determined else {})


def canonical_digest(value: Any) -> str:
    """blake2b-128, in hex, of the value's canonical JSON (sorted keys, no spaces)."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()


def canonical_json(value: Any) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def part_table(rows: Sequence[Row] | Sequence[Metric], label: Label) -> pa.Table:
    """The rows of one unit with the columns of its table, and the label as file metadata."""
    schema, varying = COLUMNS[label.table], VARYING[label.table]
    columns = [pa.array([getattr(row, name) for row in rows], type=schema.field(name).type) for name in varying]
    return labelled_table(pa.table(columns, names=list(varying)), label)


def labelled_table(varying: pa.Table, label: Label) -> pa.Table:
    """The columns in which a unit's rows differ with those that they share, and the label as file metadata."""
    schema, shared, n = COLUMNS[label.table], label.shared(), varying.num_rows
    columns = [
        varying[field.name]
        if field.name in varying.schema.names
        else pa.array([shared[field.name]] * n, type=field.type)
        for field in schema
    ]
    table = pa.table(columns, schema=schema)
    return table.replace_schema_metadata({**label.metadata(), DIGEST: part_digest(table, label).encode()})


def part_digest(table: pa.Table, label: Label) -> str:
    """blake2b-128, in hex, of a part's label and of the columns in which its rows differ."""
    described = {f.name: getattr(label, f.name) for f in fields(label) if f.name != "first_schema"}
    described["origin"] = label.origin.as_dict()
    digest = hashlib.blake2b(canonical_json(described).encode(), digest_size=16)
    for name in VARYING[label.table]:
        column = table[name].combine_chunks()
        is_text = column.type == pa.string()
        values = column.fill_null("" if is_text else 0) if column.null_count else column
        digest.update(column.is_null().to_numpy(zero_copy_only=False).tobytes())
        digest.update(canonical_json(values.to_pylist()).encode() if is_text else values.to_numpy().tobytes())
    return digest.hexdigest()
