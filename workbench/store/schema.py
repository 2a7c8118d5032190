"""What a part holds: the columns of the two tables, rows as a Parquet table, and the digest of a value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal

import pyarrow as pa

from workbench.heads import Metric, Row

SCHEMA = 1
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
    ]
)

COLUMNS: dict[str, pa.Schema] = {"scores": SCORES, "metrics": METRICS}
VARYING: dict[str, tuple[str, ...]] = {
    "scores": tuple(f.name for f in fields(Row) if f.name not in {"detector", "version", "probe"}),
    "metrics": tuple(f.name for f in fields(Metric) if f.name != "probe"),
}


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


@dataclass(frozen=True, slots=True)
class Label:
    """What a part is, as its file's metadata says it; `detector` is "" for metrics that belong to none."""

    schema: int
    table: Table
    unit: str
    rows: int
    ckpt: str
    probe: str
    probe_digest: str
    seq_len: int
    detector: str
    version: int
    identity: str

    def metadata(self) -> dict[bytes, bytes]:
        """As the `wb.*` metadata of a file."""
        return {f"wb.{f.name}".encode(): str(getattr(self, f.name)).encode() for f in fields(self)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes]) -> Label:
        """Read the `wb.*` metadata.

        Raises:
            KeyError, ValueError: if some of it is missing or not of its type.
        """
        text = {f.name: metadata[f"wb.{f.name}".encode()].decode() for f in fields(cls)}
        table = text["table"]
        if table != "scores" and table != "metrics":
            raise ValueError(f"table {table!r}")
        return cls(
            schema=int(text["schema"]),
            table=table,
            unit=text["unit"],
            rows=int(text["rows"]),
            ckpt=text["ckpt"],
            probe=text["probe"],
            probe_digest=text["probe_digest"],
            seq_len=int(text["seq_len"]),
            detector=text["detector"],
            version=int(text["version"]),
            identity=text["identity"],
        )


def canonical_digest(value: Any) -> str:
    """blake2b-128, in hex, of the value's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def part_identity(origin: Origin, table: Table, detector: tuple[str, int], probe_digest: str) -> str:
    """Digest of what two parts share when their rows may be duplicates of each other."""
    where = (origin.weights, origin.config, origin.stage, origin.branch, origin.step)
    return canonical_digest([*where, table, *detector, probe_digest])


def part_table(origin: Origin, rows: Sequence[Row] | Sequence[Metric], label: Label) -> pa.Table:
    """The rows of one unit with the columns of its table, and the label as file metadata."""
    schema = COLUMNS[label.table]
    constants = dict(zip((f.name for f in fields(origin)), astuple(origin), strict=True))
    constants |= {"unit": label.unit, "probe_digest": label.probe_digest, "seq_len": label.seq_len}
    columns = [
        pa.array(
            [constants[f.name]] * len(rows)
            if f.name in constants
            else [getattr(row, f.name) for row in rows],
            type=f.type,
        )
        for f in schema
    ]
    return pa.table(columns, schema=schema.with_metadata(label.metadata()))
